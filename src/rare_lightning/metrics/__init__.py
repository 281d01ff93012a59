"""Metrics: per case and class."""

from rare_lightning.metrics.scores import Scores, score_class

__all__ = ["Scores", "score_class"]
