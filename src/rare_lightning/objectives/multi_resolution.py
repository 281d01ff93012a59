"""The multi-resolution consistency objective of RARE-UNet."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rare_lightning.description import SelfDescribing
from rare_lightning.networks import DeepLogits, Prediction, Pyramid
from rare_lightning.networks.grids import Size3
from rare_lightning.objectives.segmentation import DiceCrossEntropy


class MultiResolutionLoss(SelfDescribing, nn.Module):
    """Weighted segmentation loss of every level, plus feature consistency (https://arxiv.org/abs/2507.15524).

    ``sum_l w_l * (alpha * CE_l + (1 - alpha) * Dice_l) + lambda * mean_l MSE(gateway_l, stop_gradient(encoder_l))``

    Where a network has deeper decoder stages supervised, a level's loss is the mean over its stages with nnU-Net's
    weights 1, 1/2, 1/4, ..., the label brought to each by the nearest voxel.

    Args:
        alpha: Share of cross-entropy in each level's loss.
        level_weights: Weights w_l of levels 0..L, normalised to sum to 1 over the levels of a batch; equal by default.
        consistency_weight: lambda after the warm-up.
        consistency_warmup_epochs: Epochs over which lambda grows linearly from 0.

    Raises:
        ValueError: If a weight or the number of epochs is negative.
    """

    def __init__(
        self,
        alpha: float = 0.35,
        level_weights: Sequence[float] | None = None,
        consistency_weight: float = 0.1,
        consistency_warmup_epochs: int = 0,
    ) -> None:
        super().__init__()
        if level_weights is not None and (min(level_weights) < 0 or sum(level_weights) == 0):
            raise ValueError(f"level_weights must be >= 0 and not all 0: {list(level_weights)}")
        if consistency_weight < 0 or consistency_warmup_epochs < 0:
            raise ValueError("consistency_weight and consistency_warmup_epochs must be >= 0")
        self.segmentation = DiceCrossEntropy(alpha)
        self.level_weights = level_weights
        self.consistency_weight = consistency_weight
        self.consistency_warmup_epochs = consistency_warmup_epochs

    def consistency_weight_at(self, epoch: int) -> float:
        """Lambda in the given epoch, counted from 0."""
        if epoch >= self.consistency_warmup_epochs:
            return self.consistency_weight
        return self.consistency_weight * epoch / self.consistency_warmup_epochs

    def share(self, levels: Sequence[int], of: Sequence[int]) -> float:
        """Sum of w_l over some levels, divided by the sum over ``of``, which include them."""
        whole = sum(self._weight(level) for level in of)
        return sum(self._weight(level) for level in levels) / max(whole, 1e-12)

    def forward(self, prediction: Prediction, targets: Pyramid, epoch: int = 0) -> dict[str, Tensor]:
        """Every part of the objective by name; ``loss`` is what to minimise.

        Args:
            prediction: The network's answer.
            targets: Level -> class indices ``(B, D, H, W)`` on the grid of that level's logits.
            epoch: For the warm-up.

        Returns:
            Scalars: ``loss``, ``level_{l}/{loss,cross_entropy,dice_loss}`` of the answers, and where there is a teacher
            ``level_{l}/consistency`` and ``consistency``.

        Raises:
            ValueError: If level_weights has no entry for a level, or an answer and its label lie on different grids.
        """
        levels = list(prediction.logits)
        for level, logits in prediction.logits.items():
            if logits.shape[2:] != targets[level].shape[1:]:
                raise ValueError(
                    f"level {level} is answered on {tuple(logits.shape[2:])} voxels, and its label is of "
                    f"{tuple(targets[level].shape[1:])}: of a network that answers on the base grid, all are compared "
                    'with batch["label"].on((1, 1, 1))'
                )
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=prediction.logits[levels[0]].device)
        for level in levels:
            scores = self.segmentation(prediction.logits[level], targets[level])
            parts |= {f"level_{level}/{name}": value for name, value in scores.items()}
            loss = self._with_deep_supervision(scores["loss"], prediction.deep.get(level, []), targets[level])
            total = total + self.share([level], levels) * loss
        if prediction.encoder:
            weight = self.consistency_weight_at(epoch)
            # Both in float32: squares of half-precision features overflow. Without a weight, for the logs alone.
            with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
                distances = {
                    level: F.mse_loss(prediction.gateway[level].float(), teacher.detach().float())
                    for level, teacher in prediction.encoder.items()
                }
            parts |= {f"level_{level}/consistency": distance for level, distance in distances.items()}
            parts["consistency"] = torch.stack(list(distances.values())).mean()
            total = total + weight * parts["consistency"]
        return {"loss": total, **parts}

    def _weight(self, level: int) -> float:
        if self.level_weights is None:
            return 1.0
        if level >= len(self.level_weights):
            raise ValueError(f"level_weights has {len(self.level_weights)} entries, the network levels up to {level}")
        return self.level_weights[level]

    def _with_deep_supervision(self, loss: Tensor, deep: Sequence[DeepLogits], target: Tensor) -> Tensor:
        share, shares = 1.0, 1.0
        for stride, logits in deep:
            share /= 2
            shares += share
            loss = loss + share * self.segmentation(logits, _at_block_centres(target, stride, logits.shape[2:]))["loss"]
        return loss / shares


def _at_block_centres(target: Tensor, stride: Size3, size: Sequence[int]) -> Tensor:
    """``(B, D, H, W)`` by nearest voxel; the last block may be cut short."""
    for axis, (step, n) in enumerate(zip(stride, size, strict=True), start=1):
        centres = torch.arange(n, device=target.device) * step + step // 2
        target = target.index_select(axis, centres.clamp_max(target.shape[axis] - 1))
    return target
