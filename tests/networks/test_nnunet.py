import pytest
import torch

from rare_lightning.networks import NNUNet
from rare_lightning.networks.nnunet import plan_topology

HALVE = (2, 2, 2)
CUBE = (3, 3, 3)


def network(**options):
    torch.manual_seed(0)
    options = {"spacing": (1, 1, 1), "patch_size": (16, 20, 16), "features": 4, "depth": 2, "levels": 1} | options
    return NNUNet(2, 3, **options)


@pytest.mark.parametrize(
    ("spacing", "patch_size", "strides", "kernels"),
    [
        # nnU-Net's own plans of the Decathlon: hippocampus, brain tumour, prostate.
        ((1, 1, 1), (40, 56, 40), [HALVE] * 3, [CUBE] * 4),
        ((1, 1, 1), (128, 128, 128), [HALVE] * 5, [CUBE] * 6),
        (
            (3.6, 0.62, 0.62),
            (20, 320, 256),
            [(1, 2, 2), (1, 2, 2), HALVE, HALVE, (1, 2, 2), (1, 2, 2)],
            [(1, 3, 3), (1, 3, 3), CUBE, CUBE, CUBE, CUBE, CUBE],
        ),
    ],
)
def test_topology_is_nnunets(spacing, patch_size, strides, kernels):
    assert plan_topology(spacing, patch_size) == (strides, kernels)


def test_axes_may_be_permuted():
    there = plan_topology((3.6, 0.62, 0.62), (20, 320, 256))
    back = plan_topology((0.62, 0.62, 3.6), (256, 320, 20))
    assert [stride[::-1] for stride in there.strides] == back.strides
    assert [kernel[::-1] for kernel in there.kernels] == back.kernels


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_answers_any_size_on_the_base_grid(kind):
    net = network(kind=kind)
    images = {0: torch.randn(1, 2, 18, 26, 6), 1: torch.randn(1, 2, 9, 13, 3)}
    prediction = net(images)
    assert {level: logits.shape for level, logits in prediction.logits.items()} == dict.fromkeys(
        (0, 1), (1, 3, 18, 26, 6)
    )


def test_deep_logits_cover_the_answer_down_to_the_last_but_one_stage():
    net = network(patch_size=(32, 32, 32))  # three down-samplings
    deep = net({0: torch.randn(1, 2, 33, 32, 31)}).deep[0]
    assert [(stage.stride, tuple(stage.logits.shape[2:])) for stage in deep] == [((2, 2, 2), (17, 16, 16))]


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("size", [8, 16, 32])  # one, two and three down-samplings
def test_everything_that_learns_has_a_share_in_the_loss(kind, size):
    net = network(patch_size=(size,) * 3, kind=kind)
    prediction = net({0: torch.randn(1, 2, size, size, size)})
    sum(
        logits.square().mean() for logits in (prediction.logits[0], *(deep.logits for deep in prediction.deep[0]))
    ).backward()
    assert all((parameter.grad is not None) is parameter.requires_grad for parameter in net.parameters())


def test_padding_changes_nothing_for_the_scan():
    # A scan that fills the patch answers as the bare architecture does.
    net = network().eval()
    image = torch.randn(1, 2, 16, 20, 16)
    torch.testing.assert_close(net({0: image}).logits[0], net.network(image)[0])


def test_missing_plan_is_refused():
    with pytest.raises(ValueError, match="patch_size"):
        NNUNet(1, 3)


def test_no_width_is_refused():
    with pytest.raises(ValueError, match=r"features \(0\) must be >= 1"):
        network(features=0)
