from types import SimpleNamespace

import pytest

from rare_lightning.callbacks import ValidationSlices


class Shows:
    def __init__(self):
        self.steps = []

    def log_slices(self, key, slices, class_names, step):
        self.steps.append(step)


def test_slices_are_shown_at_the_first_validation_and_every_n_epochs():
    logger, callback = Shows(), ValidationSlices(every_n_epochs=3)
    module = SimpleNamespace(class_names=["background", "a"])
    for epoch in range(8):
        trainer = SimpleNamespace(
            loggers=[object(), logger], current_epoch=epoch, global_step=epoch, sanity_checking=False
        )
        if callback._is_due(trainer):
            callback.slices = {"a": []}
        callback.on_validation_epoch_end(trainer, module)
    assert logger.steps == [0, 3, 6]


def test_nothing_is_cut_for_loggers_that_show_nothing():
    trainer = SimpleNamespace(loggers=[object()], current_epoch=0, sanity_checking=False)
    assert not ValidationSlices()._is_due(trainer)


@pytest.mark.parametrize("settings", [{"every_n_epochs": 0}, {"cases": -1}])
def test_wrong_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        ValidationSlices(**settings)
