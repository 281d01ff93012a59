import pytest
import torch

from rare_lightning.networks import RAREUNet, UNet
from rare_lightning.networks.blocks import Conv3x3x3, DoubleConv, ResidualConv
from rare_lightning.networks.heads import SubVoxelHead


def pyramid(network, size=(32, 48, 32), batch=2):
    return {
        level: torch.randn(batch, 2, *(n // s for n, s in zip(size, network.level_stride(level), strict=True)))
        for level in network.levels
    }


@pytest.mark.parametrize(("head", "residual"), [("sub_voxel", False), ("plain", False), ("sub_voxel", True)])
@pytest.mark.parametrize("strides", [2, [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]])
@pytest.mark.parametrize("levels", [(0, 1, 2, 3), (1, 3), (2,)])
def test_one_sweep_equals_level_by_level(head, residual, strides, levels):
    network = RAREUNet(2, 3, 4, strides=strides, head=head, residual=residual).eval()
    images = {level: image for level, image in pyramid(network).items() if level in levels}
    sweep = network(images).logits
    assert list(sweep) == list(levels)
    for level, image in images.items():
        torch.testing.assert_close(sweep[level], network({level: image}).logits[level])


def test_each_stage_runs_once_per_forward():
    network = RAREUNet(2, 3, 4)
    calls = []
    for stage in [*network.encoder, network.bottleneck, *network.decoder]:
        stage.register_forward_hook(lambda module, *_: calls.append(id(module)))
    network(pyramid(network))
    assert len(calls) == len(set(calls)) == 9


def test_stages_above_the_entry_are_not_touched():
    network = RAREUNet(2, 3, 4)
    network.encoder[0].register_forward_hook(lambda *_: pytest.fail("stage 0 ran"))
    network.encoder[1].register_forward_hook(lambda *_: pytest.fail("stage 1 ran"))
    network({2: pyramid(network)[2]})


@pytest.mark.parametrize("residual", [False, True])
def test_full_resolution_path_is_the_unet(residual):
    rare, unet = RAREUNet(2, 3, 4, residual=residual).eval(), UNet(2, 3, 4, residual=residual).eval()
    rare_state = rare.state_dict()
    renamed = {
        key: rare_state[key.removeprefix("network.").replace("heads.0.", "heads.0.conv.")] for key in unet.state_dict()
    }
    unet.load_state_dict(renamed)
    images = {0: pyramid(rare)[0]}
    torch.testing.assert_close(unet(images).logits[0], rare(images).logits[0])


def test_unet_answers_every_level_on_the_base_grid():
    unet = UNet(2, 3, 4)
    for logits in unet(pyramid(unet)).logits.values():
        assert logits.shape == (2, 3, 32, 48, 32)


def test_sub_voxel_head_starts_as_nearest_neighbour_upsampling():
    head = SubVoxelHead(5, 3, (4, 2, 1))
    logits = head(torch.randn(2, 5, 3, 4, 5))
    assert logits.shape == (2, 3, 12, 8, 5)
    torch.testing.assert_close(logits, torch.nn.functional.interpolate(logits[:, :, ::4, ::2], scale_factor=(4, 2, 1)))


def test_sub_voxel_head_puts_channels_where_pixel_shuffle_does():
    head = SubVoxelHead(8, 1, (1, 2, 2))
    torch.nn.init.normal_(head.conv.weight)
    features = torch.randn(1, 8, 1, 3, 3)
    flat = torch.nn.functional.pixel_shuffle(head.conv(head.block(features))[:, :, 0], 2)
    torch.testing.assert_close(head(features)[:, :, 0], flat)


def test_features_of_gateway_and_encoder_match_in_shape():
    network = RAREUNet(2, 3, 4)
    prediction = network(pyramid(network))
    assert list(prediction.gateway) == list(prediction.encoder) == [1, 2, 3]
    for level, features in prediction.gateway.items():
        assert features.shape == prediction.encoder[level].shape
    assert network({1: pyramid(network)[1]}).encoder == {}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({3: (2, 2, 2)}, r"one axis must reach \(3, 3, 3\)"),
        ({0: (16, 9, 16)}, r"one axis must reach \(17, 17, 17\)"),
        ({0: (32, 32, 32), 1: (16, 16, 32)}, "covers"),
        ({4: (32, 32, 32)}, r"knows levels \[0, 1, 2, 3\]"),
        ({}, "knows levels"),
    ],
)
def test_bad_inputs_are_refused_with_the_rule(images, message):
    with pytest.raises(ValueError, match=message):
        RAREUNet(2, 3, 4)({level: torch.randn(1, 2, *size) for level, size in images.items()})


@pytest.mark.parametrize("size", [(5, 7, 6), (1, 1, 3)])
def test_sizes_need_no_common_factor(size):
    # In double precision: over the two voxels of a tiny bottleneck, instance norm magnifies rounding.
    network = RAREUNet(2, 3, 4).double().eval()
    sizes = {level: [n * 8 // 2**level for n in size] for level in network.levels}
    pyramid = {level: torch.randn(1, 2, *n, dtype=torch.float64) for level, n in sizes.items()}
    together = network(pyramid).logits
    for level, image in pyramid.items():
        assert together[level].shape[2:] == tuple(n * 8 for n in size)
        torch.testing.assert_close(network({level: image}).logits[level], together[level])
    odd = torch.randn(1, 2, 17, 5, 3, dtype=torch.float64)
    assert network({0: odd}).logits[0].shape[2:] == odd.shape[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 4, "depth": 4}, r"levels \(4\) must be"),
        ({"features": [4, 8]}, "5 widths"),
        ({"gateway_blocks": 0}, "gateway_blocks"),
        ({"strides": [[2, 2]]}, "triples"),
        ({"depth": 0, "levels": 0}, "levels|depth"),
        ({"head": "other"}, "head must be"),
        ({"normalization": "other"}, "normalization must be"),
        ({"activation": "other"}, "activation must be"),
    ],
)
def test_contradicting_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RAREUNet(1, 2, **{"features": 4, **arguments})


@pytest.mark.parametrize("normalization", ["instance", "group", "batch"])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "gelu"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_parameter_gets_a_gradient(normalization, activation, residual):
    network = RAREUNet(
        2, 3, 4, normalization=normalization, activation=activation, gateway_blocks=2, dropout=0.1, residual=residual
    )
    sum(logits.square().sum() for logits in network(pyramid(network)).logits.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("features", [1, 6, 12, 20])
def test_any_width_is_normalised_in_groups(features):
    network = RAREUNet(1, 2, features, normalization="group")
    assert network({0: torch.randn(1, 1, 16, 16, 16)}).logits[0].isfinite().all()


def test_images_are_given_by_level():
    for network in (RAREUNet(1, 2, features=2, depth=2, levels=1), UNet(1, 2, features=2, depth=2, levels=1)):
        with pytest.raises(TypeError, match=r"images must be a dict of tensors by level, such as \{0: image\}: Tensor"):
            network(torch.zeros(1, 1, 8, 8, 8))
        with pytest.raises(ValueError, match=r"images have levels \[\]"):
            network({})


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_residual_block_adds_to_what_comes_in(dropout):
    block = ResidualConv(DoubleConv(4, 4, dropout=dropout)).eval()
    torch.nn.init.zeros_(block.convolutions[-1].weight)  # of the last normalisation
    features = torch.randn(1, 4, 3, 4, 5)
    torch.testing.assert_close(block(features), torch.nn.functional.leaky_relu(features, 0.01))
    assert [type(layer).__name__ for layer in block.activation] == ["LeakyReLU", "Dropout3d"][: 2 if dropout else 1]


@pytest.mark.parametrize("size", [(1, 5, 4), (2, 5, 4), (2, 2, 2), (3, 2, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_mixed_precision_learns_from_flat_volumes_what_full_precision_does(size, memory_format):
    images, answer = torch.randn(2, 16, *size), torch.randn(2, 16, *size)
    images = images.contiguous(memory_format=memory_format)
    convolution = Conv3x3x3(16, 16)
    plain = torch.nn.functional.conv3d(images, convolution.weight, padding=1)
    (right,) = torch.autograd.grad(plain, convolution.weight, answer)
    convolution.to(memory_format=memory_format)
    for _ in range(10):
        torch.full((2_000_000,), float("nan"))  # what a kernel that reads unwritten memory would find there
        with torch.autocast("cpu", torch.bfloat16):
            convolved = convolution(images)
        (found,) = torch.autograd.grad(convolved, convolution.weight, answer.to(convolved.dtype))
        torch.testing.assert_close(convolved.float(), plain, rtol=0, atol=0.05)
        torch.testing.assert_close(found, right, rtol=0, atol=0.02 * float(right.abs().max()))


def test_channels_last_and_autocast_agree_with_plain_float32():
    network = RAREUNet(2, 3, 4).eval()
    images = pyramid(network)
    plain = network(images).logits
    last = network.to(memory_format=torch.channels_last_3d)(
        {level: image.to(memory_format=torch.channels_last_3d) for level, image in images.items()}
    ).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images).logits
    for level, logits in plain.items():
        torch.testing.assert_close(last[level], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(half[level].float(), logits, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about its own parts
def test_compiled_agrees_with_eager():
    network = RAREUNet(2, 3, 4).eval()
    images = pyramid(network)
    compiled = torch.compile(network, fullgraph=True)(images)
    plain = network(images)
    for level, logits in plain.logits.items():
        torch.testing.assert_close(compiled.logits[level], logits, rtol=1e-3, atol=1e-4)
