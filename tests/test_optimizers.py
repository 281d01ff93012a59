import pytest
import torch

from rare_lightning.optimizers import Muon


def test_kernels_step_in_all_directions_alike_and_as_far_as_in_adamw():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3, 3))
    # In plain gradient descent, the second direction would be learned a thousand times more slowly.
    left, right = torch.linalg.qr(torch.randn(8, 8))[0], torch.linalg.qr(torch.randn(108, 8))[0]
    strengths = torch.tensor([10.0, 0.01, *[1.0] * 6])
    kernel.grad = (left * strengths @ right.T).view_as(kernel)
    Muon([kernel], lr=1, weight_decay=0).step()
    step = kernel.detach().view(8, -1)
    sizes = torch.linalg.svdvals(step) / (0.2 * 108**0.5)
    assert 0.15 < sizes.min() <= sizes.max() < 1.9
    assert 0.1 < step.square().mean().sqrt() < 0.3  # AdamW's are 0.2 to 0.4, says the paper
    assert (step * kernel.grad.view(8, -1)).sum() < 0


def test_everything_else_steps_as_in_adamw():
    found, expected = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = Muon([found], lr=0.1), torch.optim.AdamW([expected], lr=0.1)
    for _ in range(3):
        gradient = torch.randn(5)
        for parameter, optimizer in zip((found, expected), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(found, expected)


def test_kernels_keep_some_of_the_direction_they_had():
    """A gradient that vanishes leaves its momentum, of which Nesterov's step is made."""
    kernel = torch.nn.Parameter(torch.zeros(2, 2, 1, 1, 1))
    optimizer = Muon([kernel], lr=1, momentum=0.5, weight_decay=0)
    for strength in (1.0, 0.0):
        before = kernel.detach().clone()
        kernel.grad = strength * torch.eye(2).view(2, 2, 1, 1, 1)
        optimizer.step()
    assert (kernel.detach() - before).abs().max() > 0.1


@pytest.mark.parametrize("setting", [{"momentum": 1.0}, {"momentum": -0.1}, {"lr": -1}, {"weight_decay": -1}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="must be >= 0, and momentum"):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], **setting)
