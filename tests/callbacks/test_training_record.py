import time

import lightning as L

from rare_lightning import TrainingRecord


class FakeTrainer:
    current_epoch = 4
    world_size = 2


def test_minutes_add_up_over_resumed_runs(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = TrainingRecord()
    first.on_fit_start(FakeTrainer(), L.LightningModule())
    first.on_train_epoch_start(FakeTrainer(), L.LightningModule())
    clock[0] += 120
    for seconds in (1, 9, 2):
        first.on_train_batch_start(FakeTrainer(), L.LightningModule(), {}, 0)
        clock[0] += seconds
        first.on_train_batch_end(FakeTrainer(), L.LightningModule(), None, {}, 0)
    clock[0] -= 12
    saved = first.state_dict()
    assert saved["step_seconds"] == 2
    assert (saved["epochs"], saved["minutes"]) == (5, 2.0)
    second = TrainingRecord()
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    second.on_fit_start(FakeTrainer(), L.LightningModule())
    clock[0] += 60
    assert second.state_dict()["minutes"] == 3.0


def test_processor_time_is_that_of_the_run():
    record = TrainingRecord()
    record.load_state_dict({"cpu_minutes": 7.0})
    record.on_fit_start(FakeTrainer(), L.LightningModule())
    before = time.process_time()
    while time.process_time() - before < 0.33:  # work; the record's clock ticks in hundredths of a second
        pass
    assert 7 + 0.3 / 60 <= record.state_dict()["cpu_minutes"] < 7.2


def test_without_training_there_is_nothing_to_tell():
    assert TrainingRecord().state_dict() == {}
