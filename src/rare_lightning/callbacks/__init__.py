"""Callbacks: what happens beside training and testing."""

from rare_lightning.callbacks.test_report import TestReport

__all__ = ["TestReport"]
