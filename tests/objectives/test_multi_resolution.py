import pytest
import torch
import torch.nn.functional as F

from rare_lightning.networks import DeepLogits, Prediction, RAREUNet
from rare_lightning.objectives import DiceCrossEntropy, MultiResolutionLoss


def certain(target, classes=3):
    return 200.0 * F.one_hot(target, classes).movedim(-1, 1).float()


def test_perfect_prediction_costs_nothing():
    target = torch.randint(0, 3, (2, 4, 4, 4))
    features = {1: torch.randn(2, 4, 2, 2, 2)}
    prediction = Prediction({0: certain(target), 1: certain(target)}, features, features)
    parts = MultiResolutionLoss()(prediction, {0: target, 1: target})
    assert all(value.abs() < 1e-6 for value in parts.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_absent_class_contributes_nothing(dtype):
    target = torch.zeros(1, 64, 64, 64, dtype=torch.long)
    target[:, :32] = 1
    logits = torch.randn(1, 3, 64, 64, 64, dtype=dtype, requires_grad=True)
    loss = DiceCrossEntropy()(logits, target)["dice_loss"]
    probability = logits.detach().float().softmax(1)[:, 1]
    expected = 1 - 2 * probability[:, :32].sum() / (probability.sum() + (target == 1).sum())
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert DiceCrossEntropy()(logits, torch.zeros_like(target))["dice_loss"] == 0


def test_consistency_teaches_the_gateways_and_not_the_encoder():
    network = RAREUNet(1, 2, 4)
    prediction = network({level: torch.randn(1, 1, *[32 >> level] * 3) for level in range(4)})
    targets = {level: torch.zeros(1, 32, 32, 32, dtype=torch.long) for level in range(4)}
    MultiResolutionLoss()(prediction, targets)["consistency"].backward()
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert not (reached and not name.startswith("gateways")), name
    assert all(p.grad is not None for p in network.gateways.parameters())


def test_level_weights_are_normalised():
    target = torch.randint(0, 3, (1, 4, 4, 4))
    prediction = Prediction({level: torch.randn(1, 3, 4, 4, 4) for level in (0, 1)}, {}, {})
    targets = {0: target, 1: target}
    parts = MultiResolutionLoss(level_weights=[6, 2])(prediction, targets)
    expected = 0.75 * parts["level_0/loss"] + 0.25 * parts["level_1/loss"]
    torch.testing.assert_close(parts["loss"], expected)
    torch.testing.assert_close(
        MultiResolutionLoss()(prediction, targets)["loss"],
        MultiResolutionLoss(level_weights=[3, 3])(prediction, targets)["loss"],
    )


@pytest.mark.parametrize("weights", [None, [6, 1, 1]])
def test_losses_of_some_levels_by_their_shares_make_up_that_of_all(weights):
    target = torch.randint(0, 3, (1, 4, 4, 4))
    logits = {level: torch.randn(1, 3, 4, 4, 4) for level in range(3)}
    loss = MultiResolutionLoss(level_weights=weights)

    def of(*levels):
        prediction = Prediction({level: logits[level] for level in levels}, {}, {})
        return loss.share(levels, range(3)) * loss(prediction, dict.fromkeys(levels, target))["loss"]

    torch.testing.assert_close(of(0, 1, 2), of(0) + of(1, 2))


def test_warm_up_is_linear():
    loss = MultiResolutionLoss(consistency_weight=0.4, consistency_warmup_epochs=4)
    assert [loss.consistency_weight_at(epoch) for epoch in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(
    "arguments", [{"alpha": 2}, {"level_weights": [-1, 2]}, {"level_weights": [0]}, {"consistency_weight": -1}]
)
def test_bad_weights_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        MultiResolutionLoss(**arguments)


def test_missing_level_weight_is_refused():
    prediction = Prediction({1: torch.randn(1, 3, 4, 4, 4)}, {}, {})
    with pytest.raises(ValueError, match="level_weights has 1 entries"):
        MultiResolutionLoss(level_weights=[1])(prediction, {1: torch.zeros(1, 4, 4, 4)})


def test_loss_mixes_cross_entropy_and_dice():
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4))
    parts = DiceCrossEntropy(0.25)(logits, target)
    torch.testing.assert_close(parts["cross_entropy"], F.cross_entropy(logits, target))
    torch.testing.assert_close(parts["loss"], 0.25 * parts["cross_entropy"] + 0.75 * parts["dice_loss"])


def test_deep_supervision_halves_the_weight_per_stage():
    target = torch.randint(0, 3, (1, 5, 4, 4))  # an odd axis: its last block is cut short
    stages = [DeepLogits((s, s, s), torch.randn(1, 3, -(-5 // s), 4 // s, 4 // s)) for s in (1, 2, 4)]
    loss = MultiResolutionLoss()
    parts = loss(Prediction({0: stages[0].logits}, {}, {}, {0: stages[1:]}), {0: target})
    brought = [target, target[:, [1, 3, 4]][:, :, 1::2, 1::2], target[:, [2, 4]][:, :, 2::4, 2::4]]
    singles = [loss.segmentation(stage.logits, part)["loss"] for stage, part in zip(stages, brought, strict=True)]
    torch.testing.assert_close(parts["loss"], (4 * singles[0] + 2 * singles[1] + singles[2]) / 7)
    torch.testing.assert_close(parts["level_0/loss"], singles[0])
