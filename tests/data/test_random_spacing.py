import pytest
import torch

from rare_lightning.data.random_spacing import RandomSpacing
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import block_average

DEEPEST = (8, 8, 4)


def test_without_shares_every_level_is_its_block_average():
    image = torch.randn(2, 16, 24, 8)
    for stride in ((1, 1, 1), (2, 2, 1), (8, 8, 4)):
        made = RandomSpacing(in_between=0, anisotropic=0)(image, stride, DEEPEST)
        torch.testing.assert_close(made, block_average(image[None], stride)[0])


def test_drawn_scans_are_those_that_are_sent_to_the_level():
    torch.manual_seed(0)
    for stride in ((1, 1, 1), (2, 2, 2), (8, 8, 4)):
        drawn = torch.tensor([RandomSpacing(1, 0).draw(stride, DEEPEST) for _ in range(200)])
        ratio = drawn / torch.tensor(stride)
        assert (drawn >= 1).all()
        assert ((ratio > 0.7) & (ratio <= 2)).all()
        assert (ratio > 1.7).any()
        assert (ratio < 0.9).any() == (stride != (1, 1, 1))


def test_one_axis_is_drawn_up_to_the_deepest_levels():
    torch.manual_seed(0)
    drawn = torch.tensor([RandomSpacing(0, 1).draw((2, 2, 2), DEEPEST) for _ in range(300)])
    coarse = drawn > 2
    assert (coarse.sum(dim=1) == 1).all()
    assert coarse.any(dim=0).all()
    assert (drawn <= torch.tensor(DEEPEST)).all()
    assert (drawn.amax(dim=0) > 0.9 * torch.tensor(DEEPEST)).all()


def test_a_coarse_axis_loses_detail_and_nothing_moves():
    torch.manual_seed(0)
    index = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    blob = torch.exp(-((index - 15.5) ** 2).sum(dim=0) / 18)[None]
    for _ in range(20):
        made = RandomSpacing(1, 1)(blob, (2, 2, 2), (8, 8, 8))
        assert made.shape == (1, 16, 16, 16)
        assert made.max() < block_average(blob[None], (2, 2, 2)).max()
        # Voxels that do not fit into the volume whole repeat its end, which is dark here.
        centre = (index[:, ::2, ::2, ::2] * made).flatten(1).sum(dim=1) / made.sum() + 0.5
        torch.testing.assert_close(centre, torch.full((3,), 15.5), atol=0.25, rtol=0)


@pytest.mark.parametrize("shares", [{"in_between": 1.5}, {"anisotropic": -0.1}])
def test_shares_are_checked(shares):
    with pytest.raises(UserError, match=r"random_spacing\.\w+ \(.*\) must be a share between 0 and 1"):
        RandomSpacing(**shares)
