"""Poison, unlearn and report on offline safe RL agents trained with OSRL."""

__version__ = "0.1.0"
