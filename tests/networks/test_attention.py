"""Attention computes what plain loops compute, in every mode; the gate is a share; the counted scores are real."""

import functools

import pytest
import torch
import torch.nn.functional as F
from digar.networks.attention import MODES, GatedAttention, ResidualGate, TokenLayout, core, pieces
from digar.networks.attention.core import attend_at_once, prefix_causal_bias
from digar.networks.attention.full import FullAttention
from digar.networks.attention.grouped import GridAttention, LocalAttention
from digar.networks.attention.pieces import attend_in_pieces
from digar.networks.attention.sequence import SequenceAttention
from torch import Tensor

from tests.networks import reference

HIDDEN, HEADS = 6, 2
GATED = [mode for mode, functions in MODES.items() if len(functions) == 2]
FUNCTIONS = {"full": FullAttention, "sequence": SequenceAttention, "grid": GridAttention, "local": LocalAttention}
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
    layer = GatedAttention(HIDDEN, HEADS, mode, TokenLayout(grid, dilation, num_end == 1), **arguments).double()
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
    return FUNCTIONS[branch](TokenLayout(grid, dilation, num_end == 1))(query, key, value, [])


@pytest.mark.parametrize(("branch", "grid", "dilation"), mode_cases(["grid", "local"]))
def test_grouping_puts_every_patch_beside_those_of_its_own_group(branch, grid, dilation):
    num_patches = num_tokens(grid, 0) - 1
    grouped = FUNCTIONS[branch](TokenLayout(grid, dilation)).group(torch.arange(num_patches).reshape(1, 1, -1, 1))
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
@pytest.mark.parametrize("piece", [7, 2000, 20000, 2**20], ids=["a-query", "some-queries", "some-heads", "everything"])
def test_attention_in_pieces_is_attention_with_its_gradients(piece, masked):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 3, 150, 4, dtype=torch.float64)
    bias = bias_of(150, [0, 70], torch.float64) if masked else None
    results = []
    for attention in (functools.partial(attend_in_pieces, piece=piece), F.scaled_dot_product_attention):
        leaf = inputs.clone().requires_grad_()
        output = attention(*leaf.unbind(0), bias)
        output.square().sum().backward()
        results.append((output.detach(), leaf.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # sums over pieces are float32


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "prefix-causal"])
def test_all_ways_to_attend_agree_in_bfloat16_with_gradients(masked):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 3, 150, 16)
    bias = bias_of(150, [0, 70], torch.bfloat16) if masked else None
    results = []
    for attention, dtype in (
        (attend_at_once, torch.bfloat16),
        (functools.partial(attend_in_pieces, piece=20000), torch.bfloat16),
        (F.scaled_dot_product_attention, torch.float32),
    ):
        leaf = inputs.to(dtype, copy=True).requires_grad_()
        output = attention(*leaf.unbind(0), None if bias is None else bias.to(dtype))
        output.square().sum().backward()
        assert output.dtype == dtype
        results.append((output.detach().float(), leaf.grad.float()))
    *halves, exact = results
    for actual in halves:
        torch.testing.assert_close(actual[0], exact[0], rtol=0.02, atol=0.03)
        torch.testing.assert_close(actual[1], exact[1], rtol=0.05, atol=0.1)


def test_attention_in_pieces_is_an_operator_that_pytorch_can_compile_and_differentiate():
    torch.manual_seed(0)
    query, key, value = (tensor.requires_grad_() for tensor in torch.randn(3, 2, 3, 20, 4))
    torch.library.opcheck(attend_in_pieces, (query, key, value, bias_of(20, [0, 7], torch.float32), 100))


@pytest.mark.parametrize("piece", [1, 700, 60000])
def test_pieces_cover_every_query_once_and_no_key_that_a_query_attends_is_left_out(piece):
    query, bias = torch.zeros(3, 2, 300, 4), bias_of(300, [0, 120, 299], torch.float32)
    queries, pairs = torch.zeros(3, 2, 300), torch.zeros(3, 2, 300, 300)
    scores = 0
    for (samples, heads, rows), (_, _, keys) in pieces.cut(query, query, bias, piece):
        queries[samples, heads, rows] += 1
        pairs[samples, heads, rows, keys] += 1
        scores += pairs[samples, heads, rows, keys].numel()
    assert (queries == 1).all()
    assert (pairs[(bias == 0).expand_as(pairs)] == 1).all()
    assert scores < pairs.numel()  # the mask hides whole pieces


def test_attention_in_pieces_keeps_no_scores():
    query, key, value = torch.randn(3, 1, 2, 300, 4).requires_grad_().unbind(0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda tensor: tensor):
        attend_in_pieces(query, key, value, bias_of(300, [5], torch.float32))
    assert sorted(kept) == [2 * 300 * 4] * 3 + [300 * 300]  # query, key, value, and the bias that all layers share


def bias_of(num_tokens: int, prefix: list[int], dtype: torch.dtype) -> Tensor:
    position = torch.arange(num_tokens)[None]
    return prefix_causal_bias(position, position, torch.tensor(prefix), float("inf"), dtype)


@pytest.mark.parametrize(
    ("dtype", "few_scores", "way"),
    [
        pytest.param(torch.bfloat16, 400, "attend_at_once", id="bfloat16-few-scores"),
        pytest.param(torch.bfloat16, 399, "attend_in_pieces", id="bfloat16-many-scores"),
        pytest.param(torch.float32, 400, None, id="float32"),
    ],
)
def test_only_bfloat16_leaves_the_fused_kernel(monkeypatch, dtype, few_scores, way):
    calls = []
    monkeypatch.setattr(core, "FEW_SCORES", few_scores)
    for name in ("attend_at_once", "attend_in_pieces"):
        monkeypatch.setattr(core, name, lambda *arguments, name=name: calls.append(name))
    query, key, value = torch.randn(3, 1, 1, 20, 4).to(dtype)
    core.attend(query, key, value, None)
    assert calls == ([] if way is None else [way])


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
        FUNCTIONS[branch](TokenLayout(grid, dilation))
