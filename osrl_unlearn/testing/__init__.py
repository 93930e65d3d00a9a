"""What third parties test their attacks, detectors, adapters and methods with: pytest collects their subclasses."""
from osrl_unlearn.testing.contracts import AdapterContract, AttackContract, DetectorContract, MethodContract
from osrl_unlearn.testing.toys import toy_data

__all__ = ["AdapterContract", "AttackContract", "DetectorContract", "MethodContract", "toy_data"]
