"""Errors that a user can mend. The command line prints each as one line and exits with status 2."""


class OsrlUnlearnError(Exception):
    """Root of every error raised on purpose. The message names the thing, what was expected and what to do."""


class ConfigError(OsrlUnlearnError):
    """An unknown name, option or value on the command line or in a YAML file."""


class DataError(OsrlUnlearnError):
    """A dataset that cannot be used: missing, truncated, wrong keys, shapes or values."""


class ManifestMismatch(OsrlUnlearnError):
    """A forget manifest that does not belong to the data it is used with."""


class RunError(OsrlUnlearnError):
    """A run directory or checkpoint that cannot be used."""


class EnvironmentProblem(OsrlUnlearnError):
    """An installation in which something that is needed is missing or has moved."""


class IncompatibleAgent(OsrlUnlearnError):
    """An agent that no adapter supports. ``problems`` lists everything that is wrong with it."""

    def __init__(self, agent, problems):
        self.problems = list(problems)
        super().__init__("{} cannot be unlearned: {}".format(agent, "; ".join(self.problems)))
