"""Metrics: per case and class."""

from rare_lightning.metrics.scores import Scores, score_mask

__all__ = ["Scores", "score_mask"]
