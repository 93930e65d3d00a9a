"""What third parties test their plugins with: pytest collects subclasses of the contracts."""
from osrl_unlearn.testing.attacks import AttackContract
from osrl_unlearn.testing.contracts import AdapterContract, DetectorContract, MethodContract
from osrl_unlearn.testing.metrics import MetricContract
from osrl_unlearn.testing.toys import toy_data

__all__ = ["AdapterContract", "AttackContract", "DetectorContract", "MethodContract", "MetricContract", "toy_data"]
