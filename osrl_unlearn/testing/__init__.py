"""What third parties test their attacks, adapters and methods with; pytest collects subclasses of the contracts."""
from osrl_unlearn.testing.contracts import AdapterContract, AttackContract, MethodContract
from osrl_unlearn.testing.toys import toy_data

__all__ = ["AdapterContract", "AttackContract", "MethodContract", "toy_data"]
