import pytest
import torch

from rare_lightning.data.random_spacing import RandomSpacing
from rare_lightning.data.routing import route
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import block_average


def test_without_shares_every_level_is_its_block_average():
    image = torch.randn(2, 16, 24, 8)
    for stride in ((1, 1, 1), (2, 2, 1), (8, 8, 4)):
        made, octaves = RandomSpacing(in_between=0, anisotropic=0)(image, stride)
        assert octaves == 0
        torch.testing.assert_close(made, block_average(image[None], stride)[0])


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 1), (8, 8, 4)])
@pytest.mark.parametrize(("shares", "distinct"), [((1, 0), {1}), ((0, 1), {2}), ((1, 1), {2})])
def test_routing_sends_the_drawn_scans_to_their_level(stride, shares, distinct):
    torch.manual_seed(0)
    levels = [(1, 1, 1), (2, 2, 1), (4, 4, 2), (8, 8, 4), (16, 16, 8)]
    strides = dict(enumerate(levels))
    for _ in range(100):
        spacing = RandomSpacing(*shares).draw(stride)
        ratios = [mm / s for mm, s in zip(spacing, stride, strict=True)]
        assert len({round(ratio, 6) for ratio in ratios}) in distinct
        assert 1 <= min(ratios) <= max(ratios) < 2
        if max(ratios) < 1.8:  # where routing takes the next level's spacing to be meant
            assert route(tuple(spacing), (1, 1, 1), strides).level == levels.index(stride)


def test_a_coarse_axis_loses_detail_and_nothing_moves():
    torch.manual_seed(0)
    index = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    blob = torch.exp(-((index - 15.5) ** 2).sum(dim=0) / 18)[None]
    for _ in range(20):
        made, octaves = RandomSpacing(1, 1)(blob, (2, 2, 2))
        assert 0 < octaves < 3
        assert made.shape == (1, 16, 16, 16)
        assert made.max() < block_average(blob[None], (2, 2, 2)).max()
        # Voxels that do not fit into the volume whole repeat its end, which is dark here.
        centre = (index[:, ::2, ::2, ::2] * made).flatten(1).sum(dim=1) / made.sum() + 0.5
        torch.testing.assert_close(centre, torch.full((3,), 15.5), atol=0.25, rtol=0)


@pytest.mark.parametrize("shares", [{"in_between": 1.5}, {"anisotropic": -0.1}])
def test_shares_are_checked(shares):
    with pytest.raises(UserError, match=r"random_spacing\.\w+ \(.*\) must be a share between 0 and 1"):
        RandomSpacing(**shares)
