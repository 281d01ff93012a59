"""Which process of a run sees which item when, and with which random numbers: all of it follows from seed and epoch.

So a run that goes on after an interruption, has other loader processes, or is tested by more processes, sees what it
would have seen.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from rare_lightning.errors import UserError

T = TypeVar("T")


class TrainingShare(DistributedSampler[int]):
    """A process's share of an epoch's items, in an order that changes with the epoch.

    The shares are disjoint and together hold every item, unless that would cost some processes one step more than
    others: then fewer items than there are processes are left to other epochs. (Torch's own gives some items twice.)

    An item is given as ``epoch * items + its place``: a number that no other epoch has, to draw random numbers by.

    Successive ones make batches, of items of one kind as far as they go: what scans of several resolutions have in
    common is what the coarsest of them has.

    Args:
        items: Items of the whole set.
        batch_size: Items per step and process.
        seed: Of the order.
        processes: How many share them.
        rank: Which of them this is.
        kinds: Of the items; they are repeated where there are fewer than items.

    Raises:
        UserError: If there are fewer items than one step takes.
    """

    def __init__(
        self,
        items: int,
        batch_size: int,
        seed: int = 0,
        processes: int = 1,
        rank: int = 0,
        kinds: Sequence[Hashable] = (None,),
    ) -> None:
        super().__init__(range(items), processes, rank, seed=seed)  # type: ignore[arg-type]  # of which it takes the length
        if items < batch_size * processes:
            raise UserError(
                f"an epoch of {items} patches is less than a step of {processes} x {batch_size}: lower "
                "data.batch_size, or raise data.patches_per_case"
            )
        self.items = items
        self.batch_size = batch_size
        self.kinds = list(kinds)
        least = items // processes
        self.num_samples = least if least % batch_size == 0 else len(range(rank, items, processes))

    def __iter__(self) -> Iterator[int]:
        """The share in the epoch that :meth:`set_epoch` told."""
        with seeded(self.seed, self.epoch):
            order = torch.randperm(self.items) + self.epoch * self.items
        share = order[self.rank :: self.num_replicas][: self.num_samples].tolist()
        yield from share if len(set(self.kinds)) == 1 else self._in_batches_of_one_kind(share)

    def _in_batches_of_one_kind(self, share: list[int]) -> list[int]:
        """In the order in which they fill; what is left of all kinds comes last."""
        filling: dict[Hashable, list[int]] = {}
        ordered = []
        for item in share:
            batch = filling.setdefault(self.kinds[item % self.items % len(self.kinds)], [])
            batch.append(item)
            if len(batch) == self.batch_size:
                ordered += batch
                batch.clear()
        return [*ordered, *chain.from_iterable(filling.values())]

    def __len__(self) -> int:
        return self.num_samples


class EvaluationShare(DistributedSampler[int]):
    """A process's share of the cases, in their order.

    All shares have one length, so that processes keep step. Cases that are given again for that have places from
    ``items`` on, and are not to be counted.

    Args:
        items: Cases in all.
        processes: How many share them.
        rank: Which of them this is.
    """

    def __init__(self, items: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(range(items), processes, rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Every ``processes``-th case from ``rank`` on."""
        yield from range(self.rank, self.total_size, self.num_replicas)


class LateLoader(DataLoader[T]):
    """A loader that begins when its first batch is asked for.

    Lightning asks for the iterator of a run that goes on before it tells the epoch, when loader processes would take
    the order of the first epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # an iterator of batches all the same
        yield from super().__iter__()


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Context: torch draws the random numbers of this key on the CPU; what is drawn after it is not changed by it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


def seed_of(*key: int) -> int:
    """A seed for random numbers that those of no other key resemble."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
