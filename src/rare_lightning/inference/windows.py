"""Running a network on volumes of one level: whole, or in overlapping windows."""

from collections.abc import Sequence
from math import ceil, prod

from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from rare_lightning.networks import MultiResolutionNetwork
from rare_lightning.networks.grids import Size3, cells, crop, pad_to_size, round_up

OVERLAP = 0.25  # of neighbouring windows, as a share of their size


def segment_level(
    network: MultiResolutionNetwork, level: int, image: Tensor, window_size: Sequence[int] | None
) -> Tensor:
    """Logits of a volume that enters at one level, on the grid that the network answers on.

    Windows begin where the voxels of the coarsest features do, so that a voxel is pooled with the same neighbours as
    in the whole volume; there only the windows' borders and, in networks that normalise per sample, the statistics
    of another extent make a difference.

    Args:
        network: In the mode it shall run in.
        level: Entry level.
        image: ``(B, C, D_l, H_l, W_l)``.
        window_size: Base voxels per axis of windows that are blended with Gaussian weights, rounded up to whole
            voxels of the coarsest features. None runs the volume whole.
    """

    def predict(window: Tensor) -> Tensor:
        answer: Tensor = network({level: window}).logits[level]
        return answer

    if window_size is None:
        return predict(image)
    stride, coarsest = network.level_stride(level), network.coarsest_stride
    multiple = [max(1, whole // part) for whole, part in zip(coarsest, stride, strict=True)]
    window: Sequence[int] = round_up(cells(window_size, stride), multiple)
    size = image.shape[2:]
    whole_voxels = round_up(size, multiple)
    # Windows of one of the coarsest voxels could not overlap.
    window = [w if n <= w else max(w, 2 * m) for w, n, m in zip(window, whole_voxels, multiple, strict=True)]
    padded = [max(n, w) for n, w in zip(whole_voxels, window, strict=True)]
    steps = [max(m, int(w * (1 - OVERLAP)) // m * m) for w, m in zip(window, multiple, strict=True)]
    # MONAI reads off the first window's answer that it lies on a finer grid. Half a voxel keeps steps whole, which it
    # computes back from the overlap.
    logits: Tensor = sliding_window_inference(
        pad_to_size(image, padded),
        window,
        sw_batch_size=1,
        predictor=predict,
        overlap=[max(0.0, 1 - (step + 0.5) / w) for step, w in zip(steps, window, strict=True)],
        mode="gaussian",
    )
    finer = [n // p for n, p in zip(logits.shape[2:], padded, strict=True)]
    return crop(logits, [n * f for n, f in zip(size, finer, strict=True)])


def fit_window(size: Sequence[int], multiple: Sequence[int], smallest: Sequence[int], voxels: float) -> Size3:
    """The fewest windows over a volume that have no more than so many voxels each, cut along its longest axes.

    Args:
        size: Of the volume in base voxels, as are all others.
        multiple: Window sizes are multiples of this.
        smallest: Per axis of a window, at least.
        voxels: Of a window, at most.

    Raises:
        ValueError: If the smallest windows have more.
    """
    smallest = round_up(smallest, multiple)
    parts = [1, 1, 1]
    while True:
        cut = [ceil(n / (1 + (1 - OVERLAP) * (p - 1))) for n, p in zip(size, parts, strict=True)]
        window = round_up([max(n, least) for n, least in zip(cut, smallest, strict=True)], multiple)
        if prod(window) <= voxels:
            return window
        shrinkable = [axis for axis, n in enumerate(window) if n > smallest[axis]]
        if not shrinkable:
            raise ValueError(f"the smallest windows have {prod(window)} voxels, more than {voxels:.0f}")
        parts[max(shrinkable, key=window.__getitem__)] += 1
