"""Parameter groups: every weight once, each with the rate and decay its kind and depth ask for."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from digar.networks import ClassificationNetwork, PretrainingNetwork, SegmentationNetwork
from digar.training.optimizers import build_adamw, layer_of, parameter_groups, slow_down_retraining
from monai.handlers import CheckpointLoader
from monai.optimizers import WarmupCosineSchedule
from torch import nn

RATE, DECAY, GATE_RATE = 0.01, 0.05, 50.0
NUM_LAYERS = 4
BACKBONE = {
    "size": {"hidden_size": 12, "num_layers": NUM_LAYERS, "num_heads": 2},
    "attention": "local+grid",
    "position": "learned",
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pretraining": lambda: PretrainingNetwork(8, 4, **BACKBONE),
    "segmentation": lambda: SegmentationNetwork(8, 4, feature_size=4, **BACKBONE),
    "unetr": lambda: SegmentationNetwork(8, 4, feature_size=4, head="unetr", **BACKBONE),
    "classification": lambda: ClassificationNetwork(8, 4, **BACKBONE),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def settings(network: nn.Module, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every weight, by its name."""
    groups = parameter_groups(network, RATE, DECAY, layer_decay, GATE_RATE)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in network.named_parameters()}


def is_gate(name: str) -> bool:
    return name.endswith("gate.logit")


def matrices(network: nn.Module) -> set[str]:
    """Weights of linear layers and convolutions."""
    kinds = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("layer_decay", [0.75, 1.0])
def test_every_parameter_is_in_exactly_one_group(layer_decay, network):
    groups = parameter_groups(network, RATE, DECAY, layer_decay, GATE_RATE)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


@pytest.mark.parametrize("layer_decay", [0.5, 1.0])
def test_gates_have_their_own_rate_at_every_depth_and_no_weight_decay(layer_decay, network):
    gates = {name: found for name, found in settings(network, layer_decay).items() if is_gate(name)}
    assert len(gates) == NUM_LAYERS
    assert set(gates.values()) == {(RATE * GATE_RATE, 0.0)}


def test_weight_decay_is_for_matrices_and_convolutions_alone(network):
    decays = {name: decay for name, (_, decay) in settings(network, 0.75).items()}
    assert {name for name, decay in decays.items() if decay == DECAY} == matrices(network)
    assert {decay for name, decay in decays.items() if name not in matrices(network)} == {0.0}


def test_biases_norms_tokens_and_positions_have_no_weight_decay():
    decays = {name: decay for name, (_, decay) in settings(NETWORKS["pretraining"](), 1.0).items()}
    plain = [
        "backbone.start_token", "backbone.end_token", "backbone.position", "backbone.patch_embedding.bias",
        "backbone.blocks.0.attention_norm.weight", "backbone.blocks.0.mlp_norm.bias", "backbone.norm.weight",
        "head.bias",
    ]  # fmt: skip
    assert [decays[name] for name in plain] == [0.0] * len(plain)


def test_the_rate_decays_with_every_layer_towards_the_image(network):
    rates = {name: rate for name, (rate, _) in settings(network, 0.5).items() if not is_gate(name)}
    depths = set()
    for name, rate in rates.items():
        if name.startswith("backbone.blocks."):
            depth = 1 + int(name.split(".")[2])
        elif name.startswith(("backbone.norm", "head")):
            depth = NUM_LAYERS + 1
        else:
            depth = 0
        assert rate == pytest.approx(RATE * 0.5 ** (NUM_LAYERS + 1 - depth)), name
        depths.add(depth)
    assert depths == set(range(NUM_LAYERS + 2))


def test_with_a_layer_decay_of_1_all_rates_but_the_gates_are_alike(network):
    rates = {rate for name, (rate, _) in settings(network, 1.0).items() if not is_gate(name)}
    assert rates == {RATE}


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("backbone.patch_embedding.weight", 0),
        ("backbone.start_token", 0),
        ("backbone.end_token", 0),
        ("backbone.position", 0),
        ("backbone.blocks.0.attention.qkv.weight", 1),
        ("backbone.blocks.11.mlp.0.bias", 12),
        ("backbone.norm.weight", 13),
        ("head.out.conv.conv.weight", 13),
    ],
)
def test_a_weights_depth_is_told_by_its_name(name, depth):
    assert layer_of(name, num_layers=12) == depth


def test_adamw_takes_the_groups_as_they_are():
    network = NETWORKS["classification"]()
    optimizer = build_adamw(network, RATE, DECAY, layer_decay=0.5, gate_rate=GATE_RATE)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {name: found[id(p)] for name, p in network.named_parameters()} == settings(network, 0.5)


def test_a_step_moves_a_gate_faster_than_a_weight_and_decay_leaves_it_alone():
    network = NETWORKS["classification"]()
    optimizer = build_adamw(network, RATE, weight_decay=1.0, gate_rate=GATE_RATE)
    gate, matrix = network.backbone.blocks[0].attention.gate.logit, network.head.weight
    before = gate.detach().clone(), matrix.detach().clone()
    gate.grad, matrix.grad = torch.ones_like(gate), torch.ones_like(matrix)
    optimizer.step()
    torch.testing.assert_close(gate.detach(), before[0] - RATE * GATE_RATE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matrix.detach(), before[1] * (1 - RATE) - RATE, rtol=1e-4, atol=1e-5)


def test_fixed_gates_are_not_trained():
    network = PretrainingNetwork(8, 4, gate_learnable=False, **BACKBONE)
    assert not any(is_gate(name) for name in settings(network, 0.5))


@pytest.mark.parametrize("loads", [False, True])
def test_where_weights_are_loaded_all_rates_shrink_alike_over_the_whole_schedule(loads, tmp_path):
    network = NETWORKS["segmentation"]()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    rates = []
    for retraining in (False, True):
        optimizer = build_adamw(network, RATE, DECAY, layer_decay=0.5, gate_rate=GATE_RATE)
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=6)
        if retraining:
            handlers = [CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})] if loads else []
            slow_down_retraining([print, *handlers], scheduler, RATE / 10)
        rates.append([])
        for _ in range(6):
            rates[-1].append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
    expected = torch.tensor(rates[0]) * (0.1 if loads else 1)
    torch.testing.assert_close(torch.tensor(rates[1]), expected)


def test_weights_to_go_on_from_that_are_none_are_refused_by_name(tmp_path):
    network = NETWORKS["segmentation"]()
    torch.save({"model": SimpleNamespace()}, tmp_path / "model.pt")
    scheduler = WarmupCosineSchedule(build_adamw(network, RATE), warmup_steps=2, t_total=6)
    with pytest.raises(ValueError, match="model.pt holds more than weights, or is damaged"):
        slow_down_retraining([CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})], scheduler, RATE)
