"""Attention computes what plain loops compute, in every mode; the gate is a share; the counted scores are real."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.networks.attention import MODES, GatedAttention, ResidualGate, build_branch
from scripts.networks.attention.core import attend, prefix_causal_bias
from tests.networks import reference

HIDDEN, HEADS = 6, 2
GATED = [mode for mode in MODES if "+" in mode]
GEOMETRIES = {  # patch grid and dilation per axis
    "cubic": ((4, 4, 2), (2, 2, 2)),
    "windows-of-3": ((6, 2, 3), (2, 1, 1)),
    "one-dilation-per-axis": ((2, 3, 4), (1, 3, 2)),
    "windows-of-1": ((2, 2, 2), (2, 2, 2)),
}
SEQUENCE_GEOMETRIES = {
    "every-2nd": ((4, 2, 2), (2, 2, 2)),
    "every-3rd": ((3, 3, 3), (3, 3, 3)),
    "every-one": ((2, 1, 3), (1, 1, 1)),
}


def geometries(mode: str) -> dict[str, tuple]:
    return SEQUENCE_GEOMETRIES if "sequence" in mode else GEOMETRIES


def mode_cases(modes: list[str] | tuple[str, ...]) -> list:
    return [
        pytest.param(mode, *geometry, id=f"{mode}-{name}")
        for mode in modes
        for name, geometry in geometries(mode).items()
    ]


def num_tokens(grid: tuple[int, ...], num_end: int) -> int:
    return 1 + grid[0] * grid[1] * grid[2] + num_end


def make_layer(mode: str, grid, dilation, num_end: int, **arguments) -> GatedAttention:
    """A float64 layer whose weights are large enough for every score to matter."""
    torch.manual_seed(0)
    layer = GatedAttention(HIDDEN, HEADS, mode, grid, dilation, num_end, **arguments).double()
    for parameter in layer.parameters():
        if parameter.numel() > 1:  # the gate keeps its start
            torch.nn.init.normal_(parameter, std=0.7)
    return layer


def as_lists(layer: GatedAttention) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in layer.state_dict().items()}


def assert_equals_loops(layer: GatedAttention, grid, dilation, num_end: int, prefix: list[int] | None) -> None:
    tokens = torch.randn(2, num_tokens(grid, num_end), HIDDEN, dtype=torch.float64)
    biases = [] if prefix is None else layer.biases(torch.tensor(prefix), float("inf"), torch.float64)
    with torch.no_grad():
        actual = layer(tokens, biases)
    for sample in range(2):
        length = None if prefix is None else prefix[sample]
        expected = reference.attention_layer(
            tokens[sample].tolist(), as_lists(layer), layer.mode, HEADS, grid, dilation, num_end, length
        )
        torch.testing.assert_close(actual[sample], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "prefix", [None, [0, 5], [1, -1]], ids=["everywhere", "prefixes-0-and-5", "prefixes-1-and-N-1"]
)
@pytest.mark.parametrize("num_end", [0, 1], ids=["no-end-token", "end-token"])
@pytest.mark.parametrize(("mode", "grid", "dilation"), mode_cases(MODES))
def test_a_layer_computes_what_the_loops_compute(mode, grid, dilation, num_end, prefix):
    last = num_tokens(grid, 0) - 2  # N - 1, the longest prefix
    prefix = prefix and [last if length < 0 else length for length in prefix]
    layer = make_layer(mode, grid, dilation, num_end, gate_init=0.3)
    assert_equals_loops(layer, grid, dilation, num_end, prefix)


@pytest.mark.parametrize("prefix", [None, [0, 5]], ids=["everywhere", "prefixes-0-and-5"])
@pytest.mark.parametrize("num_end", [0, 1], ids=["no-end-token", "end-token"])
@pytest.mark.parametrize("mode", GATED)
def test_a_layer_with_separate_projections_computes_what_the_loops_compute(mode, num_end, prefix):
    grid, dilation = (4, 2, 2), (2, 2, 2)
    layer = make_layer(mode, grid, dilation, num_end, projections="separate", gate_init=0.3)
    assert {"dilated_qkv.weight", "dilated_out.weight", "dilated_out.bias"} <= set(layer.state_dict())
    assert_equals_loops(layer, grid, dilation, num_end, prefix)


@pytest.mark.parametrize("num_end", [0, 1], ids=["no-end-token", "end-token"])
@pytest.mark.parametrize(("branch", "grid", "dilation"), mode_cases(["grid", "local"]))
def test_grid_and_local_give_every_token_an_output(branch, grid, dilation, num_end):
    output = branch_output(branch, grid, dilation, num_end)
    assert (output != 0).all()


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_sequence_gives_an_output_at_every_rth_position_and_zero_elsewhere(step):
    output = branch_output("sequence", (2, 3, 2), (step,) * 3, num_end=1)
    with_output = [position for position in range(14) if output[:, :, position].abs().max() > 0]
    assert with_output == list(range(0, 14, step))


def branch_output(branch: str, grid, dilation, num_end: int) -> Tensor:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, HEADS, num_tokens(grid, num_end), 3)
    return build_branch(branch, grid, dilation, num_end)(query, key, value, [])


@pytest.mark.parametrize(("branch", "grid", "dilation"), mode_cases(["grid", "local"]))
def test_grouping_puts_every_patch_beside_those_of_its_own_group(branch, grid, dilation):
    num_patches = num_tokens(grid, 0) - 1
    grouped = build_branch(branch, grid, dilation, 0).group(torch.arange(num_patches).reshape(1, 1, -1, 1))
    coordinates = reference.patch_coordinates(grid)
    assert sorted(grouped.flatten().tolist()) == list(range(num_patches))
    for group in grouped[:, 0, :, 0].tolist():
        assert len({reference.group_of(branch, coordinates[patch], grid, dilation) for patch in group}) == 1


@pytest.mark.parametrize("num_end", [0, 1], ids=["no-end-token", "end-token"])
@pytest.mark.parametrize(("mode", "grid", "dilation"), mode_cases(MODES))
def test_counted_scores_are_those_that_the_loops_compute(mode, grid, dilation, num_end):
    layer = make_layer(mode, grid, dilation, num_end)
    names = ["full"] if mode == "none" else mode.split("+")
    pairs = [reference.attended(name, grid, dilation, num_end) for name in names]
    assert layer.num_scores == sum(len(keys) for branch in pairs for keys in branch.values())


@pytest.mark.parametrize("prefix", [0, 1, 4, 8])
def test_the_bias_hides_what_the_mask_forbids_and_nothing_else(prefix):
    position = torch.arange(10)[None]
    bias = prefix_causal_bias(position, position, torch.tensor([prefix]), float("inf"), torch.float32)
    assert bias.shape == (1, 1, 10, 10)
    for query in range(10):
        for key in range(10):
            expected = 0.0 if reference.may_attend(query, key, prefix) else -float("inf")
            assert bias[0, 0, query, key] == expected


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "prefix-causal"])
def test_bfloat16_products_and_the_fused_kernel_agree_with_gradients(masked):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 3, 20, 16)
    position = torch.arange(20)[None]
    bias = prefix_causal_bias(position, position, torch.tensor([0, 6]), float("inf"), torch.bfloat16)
    results = []
    for dtype, explicit_keys in ((torch.bfloat16, 1024), (torch.bfloat16, 0), (torch.float32, 1024)):
        leaf = inputs.to(dtype, copy=True).requires_grad_()
        output = attend(*leaf.unbind(0), bias.to(dtype) if masked else None, explicit_keys)
        output.square().sum().backward()
        assert output.dtype == dtype
        results.append((output.detach().float(), leaf.grad.float()))
    explicit, fused, exact = results
    for actual in (explicit, fused):
        torch.testing.assert_close(actual[0], exact[0], rtol=0.02, atol=0.03)
        torch.testing.assert_close(actual[1], exact[1], rtol=0.05, atol=0.1)
    torch.testing.assert_close(explicit[0], fused[0], rtol=0.02, atol=0.03)


@pytest.mark.parametrize(
    ("dtype", "explicit_keys", "kernel_calls"),
    [
        pytest.param(torch.bfloat16, 20, 0, id="bfloat16-few-keys"),
        pytest.param(torch.bfloat16, 19, 1, id="bfloat16-many-keys"),
        pytest.param(torch.float32, 20, 1, id="float32"),
    ],
)
def test_only_bfloat16_with_few_keys_leaves_the_fused_kernel(monkeypatch, dtype, explicit_keys, kernel_calls):
    calls = []
    kernel = F.scaled_dot_product_attention

    def counted(*arguments, **options) -> Tensor:
        calls.append(arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    query, key, value = torch.randn(3, 1, 1, 20, 4, dtype=torch.float32).to(dtype)
    attend(query, key, value, None, explicit_keys)
    assert len(calls) == kernel_calls


@pytest.mark.parametrize("init", [0.01, 0.5, 0.99])
def test_the_gate_starts_at_its_share_and_blends_by_it(init):
    gate = ResidualGate(init)
    assert gate.share().item() == pytest.approx(init, rel=1e-5)
    dilated, undilated = torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        blended = gate(dilated, undilated)
    torch.testing.assert_close(blended, init * dilated + (1 - init) * undilated)


def test_the_gate_starts_at_one_per_cent_unless_told():
    assert ResidualGate().share().item() == pytest.approx(0.01, rel=1e-5)
    assert ResidualGate().logit.item() == pytest.approx(-4.595, abs=1e-3)


@pytest.mark.parametrize("mode", GATED)
def test_a_learnable_gate_gets_a_gradient_and_a_fixed_one_is_a_buffer(mode):
    for learnable in (True, False):
        layer = make_layer(mode, (4, 2, 2), (2, 2, 2), 0, gate_learnable=learnable)
        layer(torch.randn(1, 17, HIDDEN, dtype=torch.float64), []).square().sum().backward()
        assert ("gate.logit" in dict(layer.named_parameters())) is learnable
        assert ("gate.logit" in dict(layer.named_buffers())) is not learnable
        assert "gate.logit" in layer.state_dict()
        if learnable:
            assert layer.gate.logit.grad.abs().item() > 0
        else:
            assert layer.gate.logit.grad is None
            assert not layer.gate.logit.requires_grad


@pytest.mark.parametrize("init", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1_is_refused_with_the_number(init):
    with pytest.raises(ValueError, match=f"gate_init {init} must lie strictly between 0 and 1"):
        ResidualGate(init)


@pytest.mark.parametrize("mode", GATED)
def test_the_gate_is_the_only_new_weight_of_shared_projections(mode):
    plain = make_layer("none", (2, 2, 2), (2, 2, 2), 0).state_dict()
    gated = make_layer(mode, (2, 2, 2), (2, 2, 2), 0).state_dict()
    assert set(gated) - set(plain) == {"gate.logit"}
    assert {name: gated[name].shape for name in plain} == {name: weight.shape for name, weight in plain.items()}


def test_separate_projections_change_nothing_without_a_gate():
    layer = make_layer("grid", (2, 2, 2), (2, 2, 2), 0, projections="separate")
    assert set(layer.state_dict()) == {"qkv.weight", "out.weight", "out.bias"}


@pytest.mark.parametrize(
    ("branch", "grid", "dilation", "message"),
    [
        pytest.param("sequence", (2, 2, 2), (2, 1, 2), r"one dilation, not one per axis: \(2, 1, 2\)", id="per-axis"),
        pytest.param("sequence", (2, 2, 2), (9, 9, 9), "sequence dilation 9 must be from 1 to 8", id="too-long"),
        pytest.param("sequence", (2, 2, 2), (0, 0, 0), "sequence dilation 0 must be from 1 to 8", id="zero"),
        pytest.param(
            "grid", (4, 3, 2), (2, 2, 2), r"grid \(4, 3, 2\) is not divisible by dilation \(2, 2, 2\)", id="grid"
        ),
        pytest.param("local", (4, 4, 1), (2, 2, 2), r"grid \(4, 4, 1\) is not divisible by dilation", id="local"),
    ],
)
def test_a_dilation_that_does_not_fit_is_refused_with_the_numbers(branch, grid, dilation, message):
    with pytest.raises(ValueError, match=message):
        build_branch(branch, grid, dilation, 0)
