"""Running a network on whole volumes of one level, in overlapping windows where it was trained on patches."""

from collections.abc import Sequence

from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from rare_lightning.networks import MultiResolutionNetwork


def segment_level(
    network: MultiResolutionNetwork, level: int, image: Tensor, window_size: Sequence[int] | None, overlap: float = 0.25
) -> Tensor:
    """Logits of a whole volume that enters at one level, on the grid that the network answers on.

    Args:
        network: In the mode it shall run in.
        level: Entry level.
        image: ``(B, C, D_l, H_l, W_l)``.
        window_size: Base voxels per axis of windows that overlap and are blended with Gaussian weights: the size of
            the training patches, since normalisation per sample sees other statistics in another extent. None runs
            the volume whole.
        overlap: Of neighbouring windows, as a share of their size.
    """

    def predict(window: Tensor) -> Tensor:
        answer: Tensor = network({level: window}).logits[level]
        return answer

    if window_size is None:
        return predict(image)
    size = [n // s for n, s in zip(window_size, network.level_stride(level), strict=True)]
    # MONAI reads off the first window's answer that it lies on a finer grid.
    logits: Tensor = sliding_window_inference(
        image, size, 1, predict, overlap=overlap, mode="gaussian", padding_mode="replicate"
    )
    return logits
