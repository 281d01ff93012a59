"""Learning rates as functions of the step alone, so that a run can go on with another schedule, or for longer."""

from collections.abc import Callable
from inspect import signature
from math import cos, pi
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Scheduler = Literal["constant", "one_cycle", "cosine", "polynomial"]


def _one_cycle(step: float, steps: float) -> float:
    """As torch's OneCycleLR: from 1/25 up over the first 30 %, and down to a ten-thousandth of that."""
    peak, last = 0.3 * steps - 1, steps - 1
    if step <= peak:
        return 1 / 25 + (1 - 1 / 25) * _risen(step / peak)
    return 1 + (1 / 25e4 - 1) * _risen(min(1.0, (step - peak) / (last - peak)))


def _risen(done: float) -> float:
    return 0.5 * (1 - cos(pi * done))


SCHEDULES: dict[Scheduler, Callable[[float, float], float]] = {
    "constant": lambda step, steps: 1.0,
    "one_cycle": _one_cycle,
    "cosine": lambda step, steps: 1 - _risen(min(1.0, step / steps)),
    "polynomial": lambda step, steps: (1 - min(1.0, step / steps)) ** 0.9,
}
"""Share of the optimizer's rate at a step, counted from 0, of a run of so many."""


class Schedule(LambdaLR):
    """Multiplies an optimizer's rates, and gives it back the settings it was made with after it took over a state.

    Args:
        optimizer: Just made.
        name: Of the schedule.
        steps: Of the whole run; ``constant`` takes any number.
        epoch_steps: Of an epoch, where the run ends with its last epoch and not after so many steps.
    """

    def __init__(self, optimizer: Optimizer, name: Scheduler, steps: float, epoch_steps: float | None = None) -> None:
        share = SCHEDULES[name]
        self._epoch_steps = epoch_steps
        # What the constructor takes, and not what some optimizers keep beside it of their state.
        settings = signature(type(optimizer)).parameters.keys() - {"params"}
        self._given = [{k: group[k] for k in settings & group.keys()} for group in optimizer.param_groups]
        super().__init__(optimizer, lambda step: share(step, max(1, steps)))

    def state_dict(self) -> dict[str, Any]:
        """The step, and how many made an epoch."""
        return {"last_epoch": self.last_epoch, "epoch_steps": self._epoch_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the step of a state, also of another schedule's.

        Where an epoch has another number of steps now, as with more processes or larger batches, from the step that so
        many epochs take now. To be called after the optimizer's, which brings back the settings it was saved with.
        """
        self.last_epoch, before = state_dict["last_epoch"], state_dict.get("epoch_steps")
        if before and self._epoch_steps:
            self.last_epoch = round(self.last_epoch * self._epoch_steps / before)
        self._last_lr = [
            rate * share(self.last_epoch) for rate, share in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, given, rate in zip(self.optimizer.param_groups, self._given, self._last_lr, strict=True):
            group.update(given, lr=rate)
