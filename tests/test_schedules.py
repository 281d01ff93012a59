import pytest
import torch

from rare_lightning.schedules import SCHEDULES, Schedule


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 101])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert SCHEDULES["one_cycle"](step, steps) == pytest.approx(torchs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "polynomial"])
def test_what_is_over_stays_over(name):
    share = SCHEDULES[name]
    assert share(10, 10) == share(13, 10) == pytest.approx(0, abs=1e-5)


def test_optimizers_keep_their_settings_and_what_they_count_themselves():
    class Counting(torch.optim.SGD):
        def __init__(self, params, lr, momentum):
            super().__init__(params, lr, momentum)
            for group in self.param_groups:
                group["counted"] = 0

    (before, _), (optimizer, schedule) = (
        (made, Schedule(made, "cosine", 10))
        for made in (
            Counting([torch.zeros(1, requires_grad=True)], lr, momentum) for lr, momentum in ((1, 0.5), (2, 0.9))
        )
    )
    before.param_groups[0]["counted"] = 7
    optimizer.load_state_dict(before.state_dict())
    schedule.load_state_dict({"last_epoch": 5})
    [group] = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["counted"]) == (pytest.approx(1), 0.9, 7)


def test_an_epoch_of_fewer_steps_leaves_the_place_among_the_epochs():
    def made(steps, epoch_steps):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return Schedule(optimizer, "cosine", steps, epoch_steps)

    begun = made(32, 4)
    begun.last_epoch = 20  # five epochs of eight
    for steps, epoch_steps, step in ((16, 2, 10), (64, 8, 40), (32, 4, 20), (40, 4, 20), (40, None, 20)):
        schedule = made(steps, epoch_steps)
        schedule.load_state_dict(begun.state_dict())
        assert schedule.last_epoch == step
        assert schedule.get_last_lr() == pytest.approx([SCHEDULES["cosine"](step, steps)])
