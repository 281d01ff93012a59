"""How much memory a network needs, and how much there is."""

import weakref
from collections.abc import Callable
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rare_lightning.networks import MultiResolutionNetwork
from rare_lightning.networks.grids import round_up

GIB = 2**30
LIBRARIES = GIB  # Python, torch and the weights, roughly
PROBE = 64  # base voxels per axis, or as many as the network needs
# CPU kernels keep copies in an order of their own; measured 1.2 to 2.6 times what is counted here.
KERNELS = 2.0


def forward_bytes(network: MultiResolutionNetwork, level: int, channels: int) -> float:
    """Bytes per base voxel that a forward at a level needs at its peak, input and answer included.

    Counted on torch's meta device, where nothing is computed.
    """
    meta = deepcopy(network).to("meta")
    probe = round_up([max(PROBE, n) for n in network.smallest_input], network.coarsest_stride)
    size = [n // s for n, s in zip(probe, network.level_stride(level), strict=True)]
    with torch.no_grad(), _PeakMemory() as memory:
        meta({level: torch.empty(1, channels, *size, device="meta")})
    return KERNELS * float(memory.peak) / prod(probe)


def total_memory(device: torch.device) -> int:
    """Bytes of a device; of the CPU, what this process is allowed if a limit is set."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([int(psutil.virtual_memory().total), *memory_limits()])


def memory_limits(root: Path = Path("/")) -> list[int]:
    """Bytes that containers and batch systems allow this process: of its control group and of all above.

    Args:
        root: Of the file system.
    """
    groups = root / "proc/self/cgroup"
    limits = []
    for line in groups.read_text().splitlines() if groups.exists() else []:  # on Linux only
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = top / path.strip("/")  # in a container perhaps the machine's path, of which it sees the end only: top
        for file in (folder / name for folder in (own, *own.parents) if folder.is_relative_to(top)):
            if file.exists() and (text := file.read_text().strip()).isdigit():  # or "max"
                limits.append(int(text))
    return limits


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not annotated it
    """Follows the sizes of all tensors that live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
