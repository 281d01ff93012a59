"""Optimizers that PyTorch lacks for networks of convolutions."""

from collections.abc import Iterable

import pytorch_optimizer
from torch import Tensor


class Muon(pytorch_optimizer.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for kernels, AdamW for norms and biases.

    The momentum of a kernel, seen as a matrix with a row for each index of its first axis (output channels, but input
    channels of a transposed convolution), loses its singular values before it is stepped along, so that all directions
    are learned at the same speed. Steps are as long as AdamW's (https://arxiv.org/abs/2502.16982), so that its rates
    and decays hold for both. Three Newton-Schulz steps of Polar Express (https://arxiv.org/abs/2505.16932) leave
    singular values within a factor of ten of each other, which five of the usual ones bring closer for no gain in Dice.

    It multiplies matrices in bfloat16. On processors that only imitate it, AdamW takes a fraction of the time.

    Args:
        params: Parameters.
        lr: Learning rate.
        momentum: Of kernels.
        weight_decay: Share of a weight that a step at rate 1 takes off.

    Raises:
        ValueError: If lr or weight_decay is negative, or momentum outside [0, 1).
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 3e-3, momentum: float = 0.95, weight_decay: float = 1e-2
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"lr ({lr}) and weight_decay ({weight_decay}) must be >= 0, and momentum ({momentum}) in [0, 1)"
            )
        parameters = list(params)
        kernels = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        adamw = {"params": others, "use_muon": False, "betas": (0.9, 0.999), "eps": 1e-8}
        muon = {"params": kernels, "use_muon": True, "use_adjusted_lr": True, "momentum": momentum}
        muon |= {"ns_steps": 3, "ns_coeffs": "polar_express"}
        rates = {"lr": lr, "weight_decay": weight_decay}
        super().__init__([{**group, **rates} for group in (muon, adamw) if group["params"]])
