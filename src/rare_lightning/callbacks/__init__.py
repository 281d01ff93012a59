"""What happens beside training and testing."""

from rare_lightning.callbacks.prediction_writer import PredictionWriter
from rare_lightning.callbacks.test_report import TestReport
from rare_lightning.callbacks.training_record import TrainingRecord

__all__ = ["PredictionWriter", "TestReport", "TrainingRecord"]
