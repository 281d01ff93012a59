"""Shares of processes."""

from itertools import product

import pytest
import torch

from rare_lightning.data.sampling import EvaluationShare, TrainingShare, seeded
from rare_lightning.errors import UserError

SHARES = [
    (items, batch, processes)
    for items, batch, processes in product((5, 8, 9, 17, 149), (1, 2, 3), (1, 2, 4))
    if items >= batch * processes
]


def shares(items, batch_size, processes, epoch=0, seed=0):
    samplers = [TrainingShare(items, batch_size, seed, processes, rank) for rank in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize(("items", "batch_size", "processes"), SHARES)
def test_shares_are_disjoint_whole_and_in_step(items, batch_size, processes):
    parts = shares(items, batch_size, processes)
    assert len({-(-len(part) // batch_size) for part in parts}) == 1
    seen = sorted(index for part in parts for index in part)
    assert seen == sorted(set(seen))
    missing = items - len(seen)
    assert missing < processes
    assert not missing or (items // processes) % batch_size == 0  # one more would be one step more


def test_what_one_epoch_leaves_out_another_has():
    seen = {index % 5 for epoch in range(20) for part in shares(5, 1, 2, epoch) for index in part}
    assert seen == set(range(5))


def test_order_follows_from_seed_and_epoch_and_not_from_the_processes():
    (alone,) = shares(10, 2, 1)
    assert shares(10, 2, 2) == [alone[0::2], alone[1::2]]
    places = [[index - 10 * epoch for index in shares(10, 2, 1, epoch)[0]] for epoch in (0, 1)]
    assert places[0] != places[1]
    assert sorted(places[0]) == sorted(places[1]) == list(range(10))
    assert shares(10, 2, 1, seed=1) != [alone]


def test_an_epoch_holds_at_least_a_step():
    with pytest.raises(UserError, match="an epoch of 5 patches is less than a step of 3 x 2"):
        TrainingShare(5, 2, processes=3)


@pytest.mark.parametrize(("items", "processes"), [(5, 1), (5, 2), (6, 2), (1, 4), (9, 4)])
def test_evaluation_keeps_step_and_tells_what_counts(items, processes):
    parts = [list(EvaluationShare(items, processes, rank)) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1
    counted = [index for part in parts for index in part if index < items]
    assert sorted(counted) == list(range(items))


def test_draws_of_a_key_leave_others_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(3, 4):
        drawn = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(3, 4):
        assert torch.equal(torch.rand(2), drawn)
    with seeded(4, 3):
        assert not torch.equal(torch.rand(2), drawn)


def test_batches_are_of_one_kind_as_far_as_they_go():
    kinds = ["fine", "coarse", "fine"]
    for epoch in range(3):
        seen, orders = [], set()
        for rank in range(2):
            sampler = TrainingShare(60, 4, 1, 2, rank, kinds)
            sampler.set_epoch(epoch)
            share = list(sampler)
            seen += share
            batches = [[kinds[item % 60 % 3] for item in share[i : i + 4]] for i in range(0, len(share), 4)]
            assert sum(len(set(batch)) > 1 for batch in batches) <= 1
            orders.add(tuple(batch[0] for batch in batches))
        assert sorted(seen) == [epoch * 60 + item for item in range(60)]
        assert all(
            list(order) not in (sorted(order), sorted(order)[::-1]) for order in orders
        )  # in turns, not one kind after the other
