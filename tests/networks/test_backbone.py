"""The backbone: nothing sees the future, sizes are checked, the mathematics is the paper's, TorchScript agrees."""

import math
from collections.abc import Callable

import pytest
import torch
from digar.networks import (
    SIZES,
    Backbone,
    BackboneSettings,
    ClassificationNetwork,
    PretrainingNetwork,
    SegmentationNetwork,
)
from digar.networks.attention import MODES
from digar.networks.position import sincos_position
from digar.networks.weights import count_parameters
from torch import Tensor, nn

from tests.networks import reference

SIZE = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
ORDERS = {mode: mode for mode in MODES} | {
    "local-grid-in-turn": ["local", "grid"],
    "none-grid-in-turn": ["none", "grid"],
}
VOLUMES = {  # name: image, patch, channels, dilation per axis (of grids (4, 2, 2) and (2, 6, 2))
    "one-channel": ((8, 4, 4), (2, 2, 2), 1, (2, 2, 2)),
    "anisotropic-two-channels": ((8, 12, 4), (4, 2, 2), 2, (2, 3, 1)),
}


def by_name(values: dict) -> list:
    return [pytest.param(value, id=name) for name, value in values.items()]


def randomise(network: nn.Module) -> nn.Module:
    """Weights large enough for every attended token to matter; gates stay where they are."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if not name.endswith("gate.logit"):
            nn.init.normal_(parameter, std=0.3)
    return network


def make_network(attention: str | list[str], volume: tuple, num_layers: int = 2, **arguments) -> PretrainingNetwork:
    image_size, patch_size, channels, dilation = volume
    network = PretrainingNetwork(
        image_size,
        patch_size,
        channels,
        size={**SIZE, "num_layers": num_layers},
        attention=attention,
        dilation=2 if "sequence" in attention else dilation,
        gate_init=0.5,
        **arguments,
    )
    return randomise(network).double().eval()


def make_image(volume: tuple, batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    image_size, _, channels, _ = volume
    return torch.randn(batch, channels, *image_size, dtype=torch.float64)


def change_each_patch(image: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """The image as it is, then for each patch the image with that patch changed: sample k has another k-th patch."""
    p, q, r = patch_size
    samples = [image[0]]
    grid = [n // s for n, s in zip(image.shape[2:], patch_size, strict=True)]
    for x, y, z in reference.patch_coordinates(grid):
        changed = image[0].clone()
        changed[:, x * p : (x + 1) * p, y * q : (y + 1) * q, z * r : (z + 1) * r] += 1.0
        samples.append(changed)
    return torch.stack(samples)


def largest_change(attention: str | list[str], volume: tuple, prefix: int, **arguments) -> Tensor:
    """``[k, i]``: by how much changing the k-th patch changes the prediction at position i; row 0 changes nothing."""
    samples = change_each_patch(make_image(volume), volume[1])
    network = make_network(attention, volume, **arguments)
    with torch.no_grad():
        prediction = network(samples, torch.full((len(samples),), prefix))
    return (prediction - prediction[:1]).abs().amax(dim=-1)


@pytest.mark.parametrize("prefix", [0, 1, 6, 15])
@pytest.mark.parametrize("volume", by_name(VOLUMES))
@pytest.mark.parametrize("attention", by_name(ORDERS))
def test_changing_a_patch_after_the_prefix_changes_no_prediction_before_it(attention, volume, prefix):
    change = largest_change(attention, volume, prefix)
    num_patches = change.shape[0] - 1
    for k in range(prefix + 1, num_patches + 1):
        assert change[k, :k].max() < 1e-11
        assert change[k, k] > 1e-3  # it does reach its own position


@pytest.mark.parametrize("prefix", [1, 6, 15])
@pytest.mark.parametrize("volume", by_name(VOLUMES))
@pytest.mark.parametrize("attention", by_name(ORDERS))
def test_changing_a_patch_inside_the_prefix_changes_predictions_before_it(attention, volume, prefix):
    change = largest_change(attention, volume, prefix)
    for k in range(1, prefix + 1):
        assert change[k, 0] > 1e-6  # the start token attends the whole prefix
        assert change[k, :k].max() > 1e-3


def test_a_finite_mask_penalty_leaks_as_documented():
    change = largest_change("none", VOLUMES["one-channel"], prefix=0, mask_penalty=1.0)
    assert change[16, 0] > 1e-6


@pytest.mark.parametrize("attention", by_name(ORDERS))
def test_each_sample_of_a_batch_has_its_own_prefix(attention):
    volume = VOLUMES["one-channel"]
    image, prefix = make_image(volume, batch=4), torch.tensor([0, 3, 9, 15])
    network = make_network(attention, volume)
    with torch.no_grad():
        together = network(image, prefix)
        alone = torch.cat([network(image[i : i + 1], prefix[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert (together[0] - network(image[:1], prefix[1:2])[0]).abs().max() > 1e-6


@pytest.mark.parametrize("attention", by_name(ORDERS))
def test_without_a_prefix_every_prediction_depends_on_the_last_patch(attention):
    volume = VOLUMES["one-channel"]
    samples = change_each_patch(make_image(volume), volume[1])
    network = make_network(attention, volume)
    with torch.no_grad():
        change = (network(samples[16:]) - network(samples[:1])).abs().amax(dim=-1)[0]
    assert change.min() > 1e-6


@pytest.mark.parametrize("end_token", [False, True], ids=["no-end-token", "end-token"])
@pytest.mark.parametrize("volume", by_name(VOLUMES))
def test_tokens_are_start_patches_in_raster_order_and_end(volume, end_token):
    image_size, patch_size, channels, _ = volume
    backbone = Backbone(BackboneSettings(image_size, patch_size, channels, size=SIZE), end_token).double()
    image = make_image(volume)
    received = []
    backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    hidden = backbone(image)

    patches = torch.tensor(reference.cut_patches(image[0].numpy(), patch_size), dtype=torch.float64)
    embedding = backbone.patch_embedding
    embedded = patches @ embedding.weight.flatten(1).T + embedding.bias
    table = torch.tensor(reference.sincos_table(backbone.grid_size, 24), dtype=torch.float64)
    expected = [backbone.start_token[0], embedded + table] + ([backbone.end_token[0]] if end_token else [])
    torch.testing.assert_close(received[0][0], torch.cat(expected), rtol=1e-6, atol=1e-6)

    assert len(hidden) == 2
    assert all(tokens.shape == (1, 1 + len(patches) + int(end_token), 24) for tokens in hidden)
    torch.testing.assert_close(hidden[-1].mean(-1), torch.zeros_like(hidden[-1][..., 0]), rtol=0, atol=1e-9)  # its norm
    for index, (x, y, z) in enumerate(reference.patch_coordinates(backbone.grid_size)):
        torch.testing.assert_close(backbone.token_map(hidden[0])[0, :, x, y, z], hidden[0][0, 1 + index])


def test_a_block_is_pre_norm_attention_and_mlp_each_with_a_residual():
    backbone = randomise(Backbone(BackboneSettings(8, 4, size=SIZE, attention="local+grid"))).double()
    block = backbone.blocks[0]
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)

    def normalised(values: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    attended = tokens + block.attention(normalised(tokens, block.attention_norm), [])
    wide = normalised(attended, block.mlp_norm) @ block.mlp[0].weight.T + block.mlp[0].bias
    assert wide.shape[-1] == 4 * 24
    gelu = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    expected = attended + gelu @ block.mlp[2].weight.T + block.mlp[2].bias
    torch.testing.assert_close(block(tokens, []), expected)


@pytest.mark.parametrize("grid", [(2, 2, 2), (3, 1, 5), (1, 4, 2)], ids=str)
@pytest.mark.parametrize("hidden_size", [6, 24, 48])
def test_sincos_table_equals_the_loops(grid, hidden_size):
    table = sincos_position(grid, hidden_size)
    expected = torch.tensor(reference.sincos_table(grid, hidden_size))
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


def test_sincos_positions_are_fixed_and_not_stored_and_learned_ones_are_parameters():
    fixed = Backbone(BackboneSettings(8, 4, size=SIZE), end_token=True)
    learned = Backbone(BackboneSettings(8, 4, size=SIZE, position="learned"), end_token=True)
    assert "position" not in fixed.state_dict()
    assert not fixed.position.requires_grad
    assert fixed.position[[0, -1]].abs().max() == 0
    assert learned.position.shape == (10, 24)  # start and end tokens have their own
    assert "position" in dict(learned.named_parameters())
    assert learned.position.abs().sum(dim=1).min() > 0
    assert Backbone(BackboneSettings(8, 4, size=SIZE, position="learned")).position.shape == (9, 24)


def test_dropout_works_in_train_mode_and_not_in_eval():
    network = make_network("local+grid", VOLUMES["one-channel"], dropout=0.3)
    image = make_image(VOLUMES["one-channel"])
    assert torch.equal(network(image), network(image))
    network.train()
    assert not torch.equal(network(image), network(image))


def test_dropout_stands_after_the_attention_and_after_the_mlp_of_a_block():
    block = randomise(Backbone(BackboneSettings(8, 4, size=SIZE, dropout=1.0))).blocks[0]
    tokens = torch.randn(1, 9, 24)
    assert torch.equal(block.train()(tokens, []), tokens)  # all is dropped but the residual
    assert (block.eval()(tokens, []) - tokens).abs().max() > 1e-3


def test_no_dropout_by_default():
    network = make_network("local+grid", VOLUMES["one-channel"]).train()
    image = make_image(VOLUMES["one-channel"])
    assert torch.equal(network(image), network(image))


def test_every_parameter_gets_a_gradient_in_pretraining():
    volume = VOLUMES["one-channel"]
    network = make_network("local+grid", volume, position="learned", projections="separate")
    network(make_image(volume), torch.tensor([3])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize(
    ("name", "hidden_size", "num_layers", "num_heads"),
    [("tiny", 192, 6, 6), ("small", 384, 12, 6), ("base", 768, 12, 12)],
)
def test_named_sizes_build_what_they_say(name, hidden_size, num_layers, num_heads):
    assert SIZES[name] == {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
    with torch.device("meta"):
        backbone = Backbone(BackboneSettings(32, 16, size=name))
    assert backbone.patch_embedding.weight.shape == (hidden_size, 1, 16, 16, 16)
    assert len(backbone.blocks) == num_layers
    assert all(block.attention.num_heads == num_heads for block in backbone.blocks)


def test_a_size_in_numbers_may_come_in_any_order():
    backbone = Backbone(BackboneSettings(8, 4, size={"num_heads": 4, "num_layers": 3, "hidden_size": 24}))
    assert backbone.hidden_size == 24
    assert len(backbone.blocks) == 3
    assert backbone.blocks[0].attention.num_heads == 4


def test_base_at_its_published_size_has_about_91_million_parameters():
    with torch.device("meta"):
        network = PretrainingNetwork(128, 16)
    assert network.backbone.num_patches == 512
    assert round(count_parameters(network) / 1e6) == 91


@pytest.mark.parametrize("attention", [mode for mode in MODES if "+" in mode])
def test_shared_projections_add_one_gate_per_layer_and_nothing_else(attention):
    plain = PretrainingNetwork(8, 4, size=SIZE).state_dict()
    gated = PretrainingNetwork(8, 4, size=SIZE, attention=attention)
    missing, unexpected = gated.load_state_dict(plain, strict=False)
    assert missing == [f"backbone.blocks.{layer}.attention.gate.logit" for layer in range(2)]
    assert unexpected == []
    assert gated.backbone.gate_shares() == pytest.approx([0.01, 0.01], rel=1e-5)


def test_modes_are_taken_in_turn_by_the_layers():
    size = {**SIZE, "num_layers": 5}
    backbone = Backbone(BackboneSettings(8, 4, size=size, attention=["local", "grid"]))
    assert [block.attention.mode for block in backbone.blocks] == ["local", "grid", "local", "grid", "local"]
    assert backbone.gate_shares() == []


# Token order


def in_volume_order(grid: list[int]) -> list[int]:
    """Raster numbers of the patches: four parts along z one after another, raster within each."""
    coordinates = reference.patch_coordinates(grid)
    order = []
    for part in range(4):
        order += [number for number, (_, _, z) in enumerate(coordinates) if z // (grid[2] // 4) == part]
    return order


IN_PARTS = {  # z has 8 and 4 patches: two and one per part
    "one-channel": ((4, 4, 16), (2, 2, 2), 1, (2, 2, 2)),
    "anisotropic-two-channels": ((8, 6, 4), (4, 2, 1), 2, (2, 3, 1)),
}


@pytest.mark.parametrize("position", ["sincos", "learned"])
@pytest.mark.parametrize("volume", by_name(IN_PARTS))
def test_in_volume_order_tokens_and_their_positions_stand_part_after_part(volume, position):
    raster, ordered = (
        make_network("none", volume, position=position, token_order=order).backbone for order in ("raster", "volume")
    )
    received = []
    for backbone in (raster, ordered):
        backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0][0]))
        backbone(make_image(volume))
    order = [0, *(1 + number for number in in_volume_order(raster.grid_size)), 1 + raster.num_patches]
    torch.testing.assert_close(received[1], received[0][order], rtol=0, atol=0)


@pytest.mark.parametrize("volume", by_name(IN_PARTS))
@pytest.mark.parametrize("attention", by_name({mode: mode for mode in MODES if "sequence" not in mode}))
def test_without_a_prefix_volume_order_permutes_the_predictions_and_changes_none(attention, volume):
    raster, ordered = (make_network(attention, volume, token_order=order) for order in ("raster", "volume"))
    image = make_image(volume)
    order = in_volume_order(raster.backbone.grid_size)
    with torch.no_grad():
        expected, found = raster(image)[0], ordered(image)[0]
    torch.testing.assert_close(found[1:-1], expected[1:-1][order])
    torch.testing.assert_close(found[[0, -1]], expected[[0, -1]])


@pytest.mark.parametrize("prefix", [0, 3, 15])
@pytest.mark.parametrize("attention", by_name({mode: mode for mode in MODES} | {"in-turn": ["local", "grid"]}))
def test_in_volume_order_nothing_sees_the_future_of_that_order(attention, prefix):
    volume = IN_PARTS["one-channel"]
    changes = largest_change(attention, volume, prefix, token_order="volume")
    for place, raster_number in enumerate(in_volume_order([2, 2, 8]), start=1):
        if place > prefix:
            assert changes[1 + raster_number, :place].max() == 0


@pytest.mark.parametrize("mode", ["grid", "local"])
def test_in_volume_order_groups_hold_the_patches_that_the_loops_say_with_the_mask_of_that_order(mode):
    volume, prefix = IN_PARTS["one-channel"], 5
    changes = largest_change(mode, volume, prefix, token_order="volume", num_layers=1)
    grid, coordinates = [2, 2, 8], reference.patch_coordinates([2, 2, 8])
    order = in_volume_order(grid)
    for query, query_number in enumerate(order, start=1):
        for key, key_number in enumerate(order, start=1):
            together = reference.group_of(mode, coordinates[query_number], grid, (2, 2, 2)) == reference.group_of(
                mode, coordinates[key_number], grid, (2, 2, 2)
            )
            seen = changes[1 + key_number, query] > 0
            assert seen == (together and reference.may_attend(query, key, prefix)), (query, key)


@pytest.mark.parametrize("attention", ["none", "local+grid"])
def test_the_network_in_volume_order_computes_the_same_scripted(attention):
    network = PretrainingNetwork((8, 8, 16), 4, size=SIZE, attention=attention, gate_init=0.3, token_order="volume")
    scripted = torch.jit.script(randomise(network).eval())
    assert_same(scripted, network, torch.randn(2, 1, 8, 8, 16), torch.tensor([0, 3]))


REFUSED = {
    "token-order": (
        {"token_order": "snake", "end_token": True},
        "token_order must be raster or volume, not 'snake'",
    ),
    "token-order-parts": (
        {"token_order": "volume", "end_token": True},
        r"token_order volume divides z into 4 parts; the patch grid is \(2, 2, 2\)",
    ),
    "token-order-downstream": ({"token_order": "volume"}, "token_order 'volume' is for pretraining"),
    "heads": ({"size": {**SIZE, "num_heads": 5}}, "hidden_size 24 is not divisible by num_heads 5"),
    "six": ({"size": {**SIZE, "hidden_size": 20}}, "hidden_size 20 is not divisible by 6"),
    "volume": ({"image_size": (8, 10, 8)}, r"image_size \(8, 10, 8\) is not divisible by patch_size \(4, 4, 4\)"),
    "grid": (
        {"image_size": (8, 8, 12), "attention": "grid"},
        r"patch grid \(2, 2, 3\) is not divisible by dilation \(2, 2, 2\)",
    ),
    "grid-per-axis": (
        {"attention": "local+grid", "dilation": (1, 2, 4)},
        r"patch grid \(2, 2, 2\) is not divisible by dilation \(1, 2, 4\)",
    ),
    "sequence-per-axis": (
        {"attention": "full+sequence", "dilation": (1, 2, 2)},
        r"sequence attention has one dilation, not one per axis: \(1, 2, 2\)",
    ),
    "sequence-too-long": ({"attention": "full+sequence", "dilation": 9}, "sequence dilation 9 must be from 1 to 8"),
    "mode": ({"attention": "dilated"}, "attention mode 'dilated' is unknown; the modes are none, full"),
    "unmeasured-mode": ({"attention": "full+grid"}, "mode 'full\\+grid' is gone, .*; the modes are none, full"),
    "unmeasured-mode-in-list": ({"attention": ["grid", "local+sequence"]}, "mode 'local\\+sequence' is gone"),
    "checkpointing": ({"checkpointing": "some"}, "checkpointing 'some' is unknown; there are none, cheap, all"),
    "mode-in-list": ({"attention": ["local", "gird"]}, "attention mode 'gird' is unknown"),
    "no-modes": ({"attention": []}, "0 attention modes are given for 2 layers"),
    "too-many-modes": ({"attention": ["local", "grid", "none"]}, "3 attention modes are given for 2 layers"),
    "size-name": ({"size": "huge"}, "network size 'huge' is unknown; the sizes are tiny, small, base"),
    "size-lacks-a-number": ({"size": {"hidden_size": 24, "num_layers": 2}}, "needs exactly hidden_size, num_layers"),
    "size-unknown-number": (
        {"size": {**SIZE, "mlp": 4}},
        "needs exactly hidden_size, num_layers, num_heads; got .*mlp",
    ),
    "position": ({"position": "rotary"}, "position must be 'sincos' or 'learned', not 'rotary'"),
    "projections": ({"projections": "both"}, "projections must be 'shared' or 'separate', not 'both'"),
    "gate": ({"attention": "local+grid", "gate_init": 1.0}, "gate_init 1.0 must lie strictly between 0 and 1"),
    "two-axes": ({"patch_size": (4, 4)}, r"patch_size must be one positive number or three, not \(4, 4\)"),
    "zero-dilation": ({"dilation": 0}, "dilation must be one positive number or three, not 0"),
}


@pytest.mark.parametrize(("changes", "message"), [pytest.param(*case, id=name) for name, case in REFUSED.items()])
def test_wrong_arguments_are_refused_with_the_numbers(changes, message):
    settings = {"image_size": 8, "patch_size": 4, "size": SIZE, **changes}
    end_token = settings.pop("end_token", False)
    with pytest.raises(ValueError, match=message):
        Backbone(BackboneSettings(**settings), end_token)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 16), (1, 2, 8, 8, 8), (1, 1, 8, 8)], ids=str)
def test_an_image_of_another_size_is_refused_with_both_sizes(shape):
    backbone = Backbone(BackboneSettings(8, 4, size=SIZE))
    given = ", ".join(str(n) for n in shape[1:])
    with pytest.raises(ValueError, match=rf"\[{given}\], the network takes \[1, 8, 8, 8\]"):
        backbone(torch.zeros(shape))


def test_bfloat16_autocast_gives_nearly_the_same_predictions():
    volume = VOLUMES["one-channel"]
    network = make_network("local+grid", volume).float()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)
    image, prefix = make_image(volume).float(), torch.tensor([5])
    with torch.no_grad():
        exact = network(image, prefix)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(image, prefix).float()
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def segmentation(head: str, attention: str | list[str], num_layers: int) -> SegmentationNetwork:
    size = {**SIZE, "num_layers": num_layers}
    return SegmentationNetwork((8, 8, 16), 4, 2, 3, head=head, feature_size=4, attention=attention, size=size)


DOWNSTREAM: dict[str, Callable[[], nn.Module]] = {
    "light-gated": lambda: segmentation("light", "local+grid", 2),
    "unetr-in-turn": lambda: segmentation("unetr", ["local", "grid"], 4),
    "classification": lambda: ClassificationNetwork((8, 8, 16), 4, 2, 5, attention="full+sequence", size=SIZE),
}


def assert_same(compiled: nn.Module, network: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", by_name(DOWNSTREAM))
def test_downstream_networks_compute_the_same_scripted(build):
    network = randomise(build()).eval()
    scripted = torch.jit.script(network)
    assert_same(scripted, network, torch.randn(1, 2, 8, 8, 16))
    assert_same(scripted, network, torch.randn(2, 2, 8, 8, 16))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("build", by_name(DOWNSTREAM))
def test_downstream_networks_compute_the_same_traced(build):
    network = randomise(build()).eval()
    traced = torch.jit.trace(network, torch.randn(1, 2, 8, 8, 16))
    assert_same(traced, network, torch.randn(1, 2, 8, 8, 16))


@pytest.mark.parametrize(
    ("attention", "projections"), [("none", "shared"), ("local+grid", "shared"), ("full+sequence", "separate")]
)
def test_the_pretraining_network_computes_the_same_scripted(attention, projections):
    network = PretrainingNetwork(8, 4, size=SIZE, attention=attention, projections=projections, gate_init=0.3)
    scripted = torch.jit.script(randomise(network).eval())
    image = torch.randn(2, 1, 8, 8, 8)
    for prefix in ([0, 3], [7, 1]):
        assert_same(scripted, network, image, torch.tensor(prefix))
    assert_same(scripted, network, image)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("attention", ["none", "local+grid"])
def test_the_pretraining_network_computes_the_same_traced(attention):
    network = randomise(PretrainingNetwork(8, 4, size=SIZE, attention=attention, gate_init=0.3)).eval()
    traced = torch.jit.trace(network, (torch.randn(2, 1, 8, 8, 8), torch.tensor([0, 3])))
    assert_same(traced, network, torch.randn(2, 1, 8, 8, 8), torch.tensor([7, 1]))
