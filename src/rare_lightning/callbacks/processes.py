"""Bringing together what the processes of a run found."""

from typing import Any

import torch.distributed as dist


def gather(mine: Any) -> list[Any]:
    """What every process of the run has, in order of rank; every process must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
