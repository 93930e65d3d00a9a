"""The one engine of a process."""
from metadrive.manager.traffic_manager import TrafficManager

_engines = []


class Engine:
    def __init__(self):
        self.traffic_manager = TrafficManager()


def get_engine():
    return _engines[-1] if _engines else None


def initialize_engine():
    assert not _engines
    _engines.append(Engine())
    return _engines[-1]


def close_engine():
    _engines.clear()
