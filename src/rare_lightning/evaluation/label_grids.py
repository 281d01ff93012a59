"""Answers and labels of a batch on grids that both lie on."""

from collections.abc import Sequence

import torch

from rare_lightning.data.pyramid import LabelPyramid
from rare_lightning.evaluation.protocol import without_padding
from rare_lightning.networks import DeepLogits, MultiResolutionNetwork, Prediction, Pyramid
from rare_lightning.networks.grids import Size3, block_average


def on_grids_of_labels(
    network: MultiResolutionNetwork, prediction: Prediction, labels: LabelPyramid
) -> tuple[Prediction, Pyramid]:
    """Answers on the grids that the labels have, and the labels.

    A label of thick voxels does not say where within them a border lies: the answer is averaged over them.
    """
    logits, targets = {}, {}
    for level, answer in prediction.logits.items():
        stride = _stride(network, prediction, labels, level)
        targets[level] = labels.on(stride)
        if network.answer_grid == "base" and stride != (1, 1, 1):
            softmax = block_average(answer.float().softmax(dim=1), stride)
            answer = softmax.clamp_min(torch.finfo(softmax.dtype).tiny).log()
        logits[level] = answer
    return prediction._replace(logits=logits), targets


def without_padding_on_grids(
    network: MultiResolutionNetwork, prediction: Prediction, labels: LabelPyramid, shape: Sequence[int]
) -> tuple[Prediction, Pyramid]:
    """Both as far as scans of so many base voxels reach; features stay whole."""
    logits, deep = {}, {}
    prediction, targets = on_grids_of_labels(network, prediction, labels)
    for level, answer in prediction.logits.items():
        stride = _stride(network, prediction, labels, level)
        logits[level] = without_padding(answer, shape, stride)
        targets[level] = without_padding(targets[level], shape, stride)
        size = logits[level].shape[2:]
        deep[level] = [
            DeepLogits(coarser, without_padding(stage, size, coarser))
            for coarser, stage in prediction.deep.get(level, [])
        ]
    return prediction._replace(logits=logits, deep=deep), targets


def _stride(network: MultiResolutionNetwork, prediction: Prediction, labels: LabelPyramid, level: int) -> Size3:
    """Of the grid that an answer is compared on with the label."""
    if network.answer_grid == "level":
        return network.level_stride(level)
    # Stages under deep supervision have their place on the base grid.
    return (1, 1, 1) if prediction.deep.get(level) else labels.finest_stride
