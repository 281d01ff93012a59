"""Cross-entropy and soft Dice of one level."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def soft_dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """One minus soft Dice, averaged over the foreground classes that are present in the batch's target.

    A class absent from the target contributes nothing (its false positives are left to cross-entropy).

    Args:
        probabilities: ``(B, C, D, H, W)``, float32: sums over a volume overflow float16.
        target: ``(B, D, H, W)`` class indices.

    Returns:
        A scalar; 0 if no foreground class is present.
    """
    foreground = probabilities[:, 1:]
    classes = torch.arange(1, probabilities.shape[1], device=target.device, dtype=target.dtype).view(-1, 1, 1, 1)
    # Neither F.one_hot, which makes 64-bit integers, nor a product: masks of a byte are kept for backward.
    own = target[:, None] == classes
    axes = (0, 2, 3, 4)
    overlap = torch.where(own, foreground, 0.0).sum(axes)
    size = own.sum(axes, dtype=foreground.dtype)
    present = (size > 0).to(size.dtype)
    dice = 2 * overlap / (foreground.sum(axes) + size).clamp_min(torch.finfo(torch.float32).tiny)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


class DiceCrossEntropy(nn.Module):
    """``alpha`` * cross-entropy + (1 - ``alpha``) * soft Dice loss on foreground classes.

    Args:
        alpha: Share of cross-entropy in 0..1; the paper's code has 0.35.

    Raises:
        ValueError: If alpha is outside 0..1.
    """

    def __init__(self, alpha: float = 0.35) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha ({alpha}) must be between 0 and 1")
        self.alpha = alpha

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Logits ``(B, C, D, H, W)``, target ``(B, D, H, W)`` -> ``cross_entropy``, ``dice_loss`` and ``loss``."""
        log_probabilities = logits.float().log_softmax(dim=1)  # once for both
        cross_entropy = F.nll_loss(log_probabilities, target.long())
        dice = soft_dice_loss(log_probabilities.exp(), target)
        return {
            "loss": self.alpha * cross_entropy + (1 - self.alpha) * dice,
            "cross_entropy": cross_entropy,
            "dice_loss": dice,
        }
