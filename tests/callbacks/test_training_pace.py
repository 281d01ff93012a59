import time

from rare_lightning import callbacks


class FakeTrainer:
    world_size = 2


class FakeModule:
    def log(self, name, value, **options):
        self.logged = {name: value}


def test_patches_of_all_processes_count_and_validation_does_not(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace, trainer, module = callbacks.TrainingPace(), FakeTrainer(), FakeModule()
    pace.on_train_epoch_start(trainer, module)
    for _ in range(2):
        clock[0] += 2
        pace.on_train_batch_end(trainer, module, None, {"case": ["a", "b", "c"]}, 0)
        clock[0] += 50
        pace.on_validation_end(trainer, module)
    pace.on_train_epoch_end(trainer, module)
    assert module.logged == {"train/patches_per_second": 2 * 6 / 4}
