"""nnU-Net's trainer on a budget. Loaded in nnU-Net's own environment, by run.py and by nothing else.

Settings come by the environment, since nnU-Net's command line has none for them:

    RARE_TRAINER     nnU-Net's trainer to build upon
    RARE_MINUTES     train that long, its own validation patches included; as many epochs as the trainer says if empty
    RARE_ITERATIONS  iterations of an epoch; 250 if empty. Of validation patches a fifth of it, as in nnU-Net.
    RARE_SEED        of the weights; the processes that augment draw numbers of their own
"""

import json
import math
import os
import random
import resource
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

TRAINER = os.environ.get("RARE_TRAINER") or "nnUNetTrainer"
MINUTES = float(os.environ.get("RARE_MINUTES") or "inf")
ITERATIONS = int(os.environ.get("RARE_ITERATIONS") or 250)
SEED = int(os.environ.get("RARE_SEED") or 0)


class BudgetSpent(Exception):
    """Ends nnU-Net's loop over epochs."""


class RareTrainer(recursive_find_trainer_class_by_name(TRAINER)):  # type: ignore[misc]  # nnU-Net is not installed here
    """A trainer of nnU-Net, with epochs of another length and its polynomial schedule stretched over a time."""

    def __init__(  # nnU-Net looks the names of the parameters up
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # as in nnU-Net
    ) -> None:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(SEED)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = ITERATIONS
        self.num_val_iterations_per_epoch = max(1, ITERATIONS // 5)
        if math.isfinite(MINUTES):
            self.num_epochs = sys.maxsize
        self.step_seconds: list[float] = []

    def run_training(self) -> None:
        """Until the last epoch, or the end of the budget."""
        try:
            super().run_training()
        except BudgetSpent:
            self.on_train_end()

    def on_train_epoch_start(self) -> None:
        """Let the schedule end with the budget: at as many epochs as fit by the speed so far."""
        if math.isfinite(MINUTES) and self.current_epoch > 0:
            self.lr_scheduler.max_steps = self.current_epoch * MINUTES / self.minutes()
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step, timed."""
        start = time.monotonic()
        outputs: dict[str, Any] = super().train_step(batch)
        self.step_seconds.append(time.monotonic() - start)
        return outputs

    def on_epoch_end(self) -> None:
        """Stop when another epoch would end further from the budget."""
        super().on_epoch_end()
        minutes = self.minutes()
        if minutes + 0.5 * minutes / self.current_epoch >= MINUTES:
            raise BudgetSpent

    def on_train_end(self) -> None:
        """Leave ``training.json`` beside the checkpoint."""
        super().on_train_end()
        network = self.configuration_manager
        record = {
            "epochs": self.current_epoch,
            "minutes": self.minutes(),
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "iterations_per_epoch": self.num_iterations_per_epoch,
            "validation_iterations_per_epoch": self.num_val_iterations_per_epoch,
            "trainer": TRAINER,
            "patch_size": [int(n) for n in network.patch_size],
            "batch_size": int(network.batch_size),
            "features_per_stage": network.network_arch_init_kwargs.get("features_per_stage"),
            "parameters": sum(weights.numel() for weights in self.network.parameters()),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("nnunetv2", "torch")},
        }
        with open(os.path.join(self.output_folder, "training.json"), "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the test scans are scored elsewhere, and this would take as long as they do."""

    def minutes(self) -> float:
        """Spent in epochs so far, those of an interrupted run included."""
        starts, ends = (self.logger.get_value(f"epoch_{which}_timestamps", step=None) for which in ("start", "end"))
        # The running epoch has no end yet.
        return float(sum(end - start for start, end in zip(starts, ends, strict=False))) / 60
