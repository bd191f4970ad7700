"""Heads: patches and strides fit the volume, the light stem starts silent, logits stand on the image's grid."""

import math

import numpy as np
import pytest
import torch
from digar.networks import ClassificationNetwork, SegmentationNetwork
from digar.networks.heads import HEADS, HeadSizes, LightHead, UnetrHead
from digar.networks.heads.strides import doublings, level_kernels, stage_strides
from digar.networks.patches import from_patches, to_patches

from tests.networks import reference

SIZE = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
DEEP = {**SIZE, "num_layers": 4}
PATCHES = {
    "cubic-16": ((32, 16, 16), (16, 16, 16)),
    "thick-slices": ((16, 16, 8), (8, 8, 4)),
    "cubic-4": ((8, 8, 4), (4, 4, 4)),
    "flat": ((8, 8, 4), (4, 4, 1)),
}
VOLUMES = {
    "one-channel": (1, (4, 4, 4), (2, 2, 2)),
    "two-channels-anisotropic": (2, (8, 6, 2), (4, 2, 1)),
    "one-patch": (3, (2, 3, 4), (2, 3, 4)),
}


def sizes(cases: dict) -> list:
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("channels", "volume", "patch_size"), sizes(VOLUMES))
def test_patches_are_cut_in_raster_order_and_put_back(channels, volume, patch_size):
    image = torch.randn(2, channels, *volume)
    patches = to_patches(image, patch_size)
    expected = np.stack([reference.cut_patches(sample.numpy(), patch_size) for sample in image])
    assert np.array_equal(patches.numpy(), expected)
    assert torch.equal(from_patches(patches, volume, patch_size), image)


def test_a_volume_that_patches_do_not_fill_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"image size \(4, 6, 4\) is not divisible by patch_size \(2, 4, 2\)"):
        to_patches(torch.zeros(1, 1, 4, 6, 4), (2, 4, 2))


@pytest.mark.parametrize(
    ("patch_size", "num_stages", "strides"),
    [
        ((16, 16, 16), 4, [(2, 2, 2)] * 4),
        ((8, 8, 4), 3, [(2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((8, 8, 4), 4, [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((16, 2, 1), 4, [(2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 1)]),
    ],
    ids=str,
)
def test_an_axis_with_fewer_doublings_takes_them_in_the_coarse_stages(patch_size, num_stages, strides):
    assert stage_strides(patch_size, num_stages) == strides
    assert tuple(math.prod(axis) for axis in zip(*strides, strict=True)) == patch_size
    assert doublings(patch_size) == [int(math.log2(p)) for p in patch_size]


@pytest.mark.parametrize(
    ("patch_size", "kernels"),
    [
        ((8, 8, 8), [(3, 3, 3)] * 4),
        ((8, 8, 4), [(3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)]),
        ((8, 8, 2), [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)]),
        ((1, 8, 8), [(1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3)]),
    ],
    ids=str,
)
def test_convolutions_leave_an_axis_of_thick_voxels_to_the_levels_where_the_others_are_as_thick(patch_size, kernels):
    strides = stage_strides(patch_size, max(doublings(patch_size)))
    assert level_kernels(strides) == kernels
    head = LightHead(HeadSizes(1, 2, 24, 12, patch_size, 4))
    first = [stage.conv1.conv.kernel_size for stage in head.pyramid]
    assert first == kernels
    assert [stage.conv_block.conv1.conv.kernel_size for stage in head.decoder] == kernels[-2::-1]


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("patch_size", [(12, 12, 12), (8, 8, 6), (4, 4, 0)], ids=str)
def test_a_patch_that_is_no_power_of_two_is_refused_with_its_size(head, patch_size):
    with pytest.raises(ValueError, match=rf"patch_size \({patch_size[0]}, .* must be powers of two"):
        head(HeadSizes(1, 2, 24, 12, patch_size, 4))


def test_unetr_refuses_patches_over_16_and_fewer_than_4_layers():
    with pytest.raises(ValueError, match=r"patch_size \(32, 16, 16\) is over 16"):
        UnetrHead(HeadSizes(1, 2, 24, 12, (32, 16, 16), 4))
    with pytest.raises(ValueError, match="at least 4 layers; the backbone has 3"):
        UnetrHead(HeadSizes(1, 2, 24, 3, (16, 16, 16), 4))


def test_an_unknown_head_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="head 'vnet' is unknown; the heads are light, unetr"):
        SegmentationNetwork(8, 4, head="vnet", size=SIZE)


@pytest.mark.parametrize("head", ["light", "unetr"])
@pytest.mark.parametrize(("volume", "patch_size"), sizes(PATCHES))
def test_logits_stand_on_the_image_grid(head, volume, patch_size):
    network = SegmentationNetwork(volume, patch_size, 2, 3, head=head, feature_size=4, size=DEEP)
    with torch.no_grad():
        assert network(torch.randn(2, 2, *volume)).shape == (2, 3, *volume)


@pytest.mark.parametrize(
    ("num_layers", "after"), [(12, [4, 7, 10]), (24, [8, 14, 20]), (4, [1, 2, 3])], ids=["12", "24", "4"]
)
def test_unetr_takes_its_skips_after_the_published_shares_of_the_depth(num_layers, after):
    head = UnetrHead(HeadSizes(1, 2, 24, num_layers, (16, 16, 16), 4))
    assert [layer + 1 for layer in head.skip_layers] == after


def test_unetr_keeps_the_levels_that_a_small_patch_does_not_need_at_the_resolution_of_the_tokens():
    head = UnetrHead(HeadSizes(1, 2, 24, 4, (8, 8, 2), 4))
    merges = (head.decoder5, head.decoder4, head.decoder3, head.decoder2)
    strides = [merge.transp_conv.conv.stride for merge in merges]
    assert strides == [(1, 1, 1), (2, 2, 2), (2, 2, 1), (2, 2, 1)]


def test_unetr_reads_its_three_skip_layers_the_last_one_and_the_image():
    head = UnetrHead(HeadSizes(1, 2, 24, 12, (4, 4, 4), 4))
    maps = [torch.randn(1, 24, 2, 2, 2, requires_grad=True) for _ in range(12)]
    image = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    head(maps, head.stem(image)).square().sum().backward()
    assert [layer + 1 for layer, tokens in enumerate(maps) if tokens.grad is not None] == [4, 7, 10, 12]
    assert image.grad.abs().max() > 0


def light_network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork((8, 8, 16), 4, 1, 3, head="light", feature_size=4, size=SIZE)


def last_tokens(network: SegmentationNetwork, image: torch.Tensor) -> torch.Tensor:
    received = []
    handle = network.backbone.norm.register_forward_hook(lambda *call: received.append(call[-1].detach()))
    network(image)
    handle.remove()
    return received[0]


def test_pyramid_and_tokens_leave_each_other_alone_at_the_start_and_can_learn_not_to():
    network, image = light_network(), torch.randn(1, 1, 8, 8, 16)
    levels = network.head.stem(image)
    silent = network.head([torch.zeros(1, 24, 2, 2, 4)], levels)
    assert torch.equal(network(image), silent)
    network(image).square().sum().backward()
    assert network.head.from_tokens.weight.grad.abs().max() > 0
    torch.nn.init.normal_(network.head.from_tokens.weight)
    assert (network(image) - silent).abs().max() > 1e-3

    alone = network.backbone(image)[-1].detach()
    assert torch.equal(network.head.token_offset(network.head.stem(image)), torch.zeros(1, 24, 2, 2, 4))
    assert torch.equal(last_tokens(network, image), alone)

    network(image).square().sum().backward()
    assert network.head.to_tokens.weight.grad.abs().max() > 0
    torch.nn.init.normal_(network.head.to_tokens.weight)
    assert (last_tokens(network, image) - alone).abs().max() > 1e-3


def test_light_logits_depend_on_the_tokens_and_on_the_pyramid():
    network, image = light_network(), torch.randn(1, 1, 8, 8, 16)
    head, tokens = network.head, torch.randn(2, 24, 2, 2, 4)
    torch.nn.init.normal_(head.from_tokens.weight)
    levels = head.stem(image)
    assert [tuple(level.shape[2:]) for level in levels] == [(8, 8, 16), (4, 4, 8), (2, 2, 4)]
    logits = head([tokens[:1]], levels)
    assert (head([tokens[1:]], levels) - logits).abs().max() > 1e-3
    for level in range(3):
        changed = [features + torch.randn_like(features) * (i == level) for i, features in enumerate(levels)]
        assert (head([tokens[:1]], changed) - logits).abs().max() > 1e-3


def test_the_unetr_stem_adds_nothing_to_the_tokens():
    head = UnetrHead(HeadSizes(1, 2, 24, 12, (16, 16, 16), 4))
    assert head.token_offset([torch.zeros(1, 4, 16, 16, 16)]) is None


@pytest.mark.parametrize(("channels", "num_classes"), [(1, 2), (3, 8)])
def test_classification_is_a_linear_layer_on_the_mean_patch_token(channels, num_classes):
    network = ClassificationNetwork((8, 4, 4), (4, 2, 2), channels, num_classes, attention="full+sequence", size=SIZE)
    image = torch.randn(3, channels, 8, 4, 4)
    logits = network(image)
    assert logits.shape == (3, num_classes)
    patches = network.backbone(image)[-1][:, 1:]  # without the start token
    assert patches.shape == (3, 8, 24)
    expected = sum(patches[:, i] for i in range(8)) / 8 @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(logits, expected)
