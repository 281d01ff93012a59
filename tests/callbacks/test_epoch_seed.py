from types import SimpleNamespace

import torch

from rare_lightning.callbacks import EpochSeed


def drawn(seed, epoch, rank, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    with torch.random.fork_rng(devices=[]):
        EpochSeed().on_train_epoch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None)
        return torch.rand(4).tolist()


def test_seeds_epochs_and_processes_share_no_random_numbers(monkeypatch):
    keys = [(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1, 2) for rank in (0, 1)]
    numbers = [drawn(*key, monkeypatch) for key in keys]
    assert len({tuple(each) for each in numbers}) == len(keys)
    assert [drawn(*key, monkeypatch) for key in keys] == numbers
