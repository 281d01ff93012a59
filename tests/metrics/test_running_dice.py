import pytest
import torch
from torchmetrics.segmentation import DiceScore

from rare_lightning.metrics.running_dice import RunningDice


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_mean_over_cases_that_torchmetrics_finds(classes):
    torch.manual_seed(0)
    expected = DiceScore(classes, include_background=False, average="none", input_format="index")
    found = RunningDice(classes)
    for cases in (2, 0, 3):  # a process that has no case left counts none
        truth = torch.randint(0, 2, (cases, 6, 5, 4)) * (classes - 1)  # the classes between are absent
        answer = torch.randint(0, classes, (cases, 6, 5, 4))
        answer[:1] = truth[:1]
        answer[answer == 1] = 0 if classes > 2 else 1  # nobody has this one
        expected.update(answer, truth)
        found.update(answer, truth.to(torch.uint8))
    torch.testing.assert_close(found.compute(), expected.compute(), equal_nan=True)


def test_a_class_of_which_there_is_no_voxel_is_undefined_and_of_false_ones_0():
    dice = RunningDice(4)
    dice.update(torch.tensor([[[[0, 1]]]]), torch.tensor([[[[2, 1]]]]))
    assert dice.compute()[:2].tolist() == [1, 0]
    assert dice.compute()[2].isnan()
