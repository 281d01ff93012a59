"""What happens beside training and testing."""

from rare_lightning.callbacks.epoch_seed import EpochSeed
from rare_lightning.callbacks.prediction_writer import PredictionWriter
from rare_lightning.callbacks.test_report import TestReport
from rare_lightning.callbacks.training_pace import TrainingPace
from rare_lightning.callbacks.training_record import TrainingRecord
from rare_lightning.callbacks.validation_slices import ValidationSlices

__all__ = ["EpochSeed", "PredictionWriter", "TestReport", "TrainingPace", "TrainingRecord", "ValidationSlices"]
