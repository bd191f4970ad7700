"""Attention alone, without projections: time, memory and scores of each mode as the patch grid grows.

    python -m benchmarks.attention --output attention.json
    python -m benchmarks.attention --grids 8x8x8 16x16x16 --dtypes bf16

Queries, keys and values of ``base`` (12 heads of 64 channels), batch 1. ``prefix`` rows are pretraining's: an end
token, and the prefix-causal mask at half the sequence, whose expansion (once per forward pass, not per layer) counts
in the memory but not in the time. The other rows are fine-tuning's and attend everywhere.

A dilation of 2 divides the cost by 8 in ``grid`` and ``local`` and by 4 in ``sequence``; it stays quadratic. The rows
``8^3`` scale the dilation with the grid, so that a sub-grid or window keeps 8^3 patches: linear, as D-Former has it.

A row is left out, and says why, where its memory or time, estimated from the grid before it and the growth of the
number of scores, is over the limit. The last table is about bf16 on a CPU, by number of keys: PyTorch's fused kernel,
plain products of all heads, and pieces of them, between which ``scripts/digar/networks/attention/core.py`` decides.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from digar.networks.attention import MODES as ATTENTION_MODES
from digar.networks.attention import TokenLayout
from digar.networks.attention.core import attend_at_once, prefix_causal_bias
from digar.networks.attention.pieces import attend_in_pieces
from torch import Tensor, nn

from benchmarks.measure import (
    DTYPES,
    MIB,
    available_memory,
    default_device,
    machine_facts,
    peak_memory,
    print_machine,
    print_table,
    seconds_in_turns,
    write_json,
)

HEADS, HEAD_WIDTH = 12, 64  # of `base`
LARGEST_AT_ONCE = 2000  # MiB of scores and what stands beside them
SUBGRID = 8  # patches along an axis of the sub-grids of constant size
GRIDS = ["8x8x8", "16x16x16", "16x16x32", "16x32x32", "32x32x32"]
(FULL,), (_, SEQUENCE), (LOCAL, GRID) = (ATTENTION_MODES[mode] for mode in ("none", "full+sequence", "local+grid"))
FUNCTIONS = {"full": FULL, "sequence": SEQUENCE, "grid": GRID, "local": LOCAL}
MODES = ["full", "sequence", "grid", "local", "grid 8^3", "local 8^3"]


class Case(NamedTuple):
    """One attention function on one grid; ``prefix``: with pretraining's mask and end token."""

    mode: str
    grid: tuple[int, int, int]
    dtype: str
    prefix: bool
    device: str

    def branch(self) -> nn.Module:
        name, _, scaled = self.mode.partition(" ")
        t, h, w = (max(1, n // SUBGRID) for n in self.grid) if scaled else (2, 2, 2)
        return FUNCTIONS[name](TokenLayout(self.grid, (t, h, w), self.prefix))

    def tokens(self) -> int:
        return 1 + math.prod(self.grid) + int(self.prefix)


def random_heads(num_tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys and values, ``(1, heads, S, d)`` each, which want gradients."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, HEADS, num_tokens, HEAD_WIDTH, generator=generator) for _ in range(3)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in heads]


def make_biases(case: Case, branch: nn.Module) -> list[Tensor]:
    """The prefix-causal mask of the case, or none."""
    if not case.prefix:
        return []
    half = torch.tensor([case.tokens() // 2], device=case.device)
    return branch.biases(half, math.inf, DTYPES[case.dtype])


def run(attention: Callable[..., Tensor], heads: Sequence[Tensor], training: bool) -> None:
    """A forward pass, and in training a backward pass; the gradients are dropped."""
    if training:
        attention(*heads).backward(heads[0].detach())  # any gradient that is laid out as real ones are
        for tensor in heads:
            tensor.grad = None
    else:
        with torch.no_grad():
            attention(*heads)


def build_training(case: Case) -> Callable[[], None]:
    """What the memory is measured of: the mask's expansion, then a forward and a backward pass."""
    small = case._replace(grid=(2, 2, 2))  # first, so that what the libraries load on first use is not counted
    branch, heads = small.branch(), random_heads(small.tokens(), DTYPES[case.dtype], case.device)
    run(functools.partial(branch, biases=make_biases(small, branch)), heads, training=True)
    branch, heads = case.branch(), random_heads(case.tokens(), DTYPES[case.dtype], case.device)
    return lambda: run(functools.partial(branch, biases=make_biases(case, branch)), heads, training=True)


def time_cases(cases: Sequence[Case], rounds: int) -> dict[Case, dict[str, float]]:
    """Median seconds of a forward pass and of a training pass (forward and backward); the cases differ in mode."""
    calls: dict[str, Callable[[], None]] = {}
    for case in cases:
        branch, heads = case.branch(), random_heads(case.tokens(), DTYPES[case.dtype], case.device)
        attention = functools.partial(branch, biases=make_biases(case, branch))
        calls[f"{case.mode}/training"] = functools.partial(run, attention, heads, training=True)
        calls[f"{case.mode}/forward"] = functools.partial(run, attention, heads, training=False)
    seconds = seconds_in_turns(calls, rounds, cases[0].device)
    return {
        case: {kind: statistics.median(seconds[f"{case.mode}/{kind}"]) for kind in ("training", "forward")}
        for case in cases
    }


@dataclass
class Limits:
    """What an estimate may not exceed: MiB, and seconds of one training pass."""

    memory_mib: float
    seconds: float


def estimate(case: Case, scores: int, before: dict | None) -> tuple[float, float]:
    """MiB and seconds that a case needs at most: those of the grid before it times the growth of its scores.

    Without a grid before it, the memory is that of six score matrices of every head, and the time 0.
    """
    if before is None:
        return HEADS * scores * DTYPES[case.dtype].itemsize * 6 / MIB, 0.0
    growth = scores / before["scores_per_head"]
    return before["peak_memory_mib"] * growth, before["seconds_training"] * growth


def measure_grid(cases: Sequence[Case], before: dict[str, dict], rounds: int, limits: Limits) -> list[dict]:
    """A row per case (all of one grid, dtype and mask).

    Args:
        cases: what to measure.
        before: the row of each mode on a smaller grid, by mode; a mode that was left out there is left out here.
        rounds: timed runs.
        limits: what an estimate may not exceed.
    """
    rows = []
    for case in cases:
        row = {
            "mode": case.mode,
            "grid": "x".join(str(n) for n in case.grid),
            "tokens": case.tokens(),
            "dtype": case.dtype,
            "prefix": case.prefix,
            "scores_per_head": case.branch().num_scores,
            "skipped": None,
        }
        previous = before.get(case.mode)
        if previous is not None and previous["skipped"] is not None:
            row["skipped"] = previous["skipped"]
        else:
            memory, seconds = estimate(case, row["scores_per_head"], previous)
            if memory > limits.memory_mib:
                row["skipped"] = f"up to {memory:.0f} MiB, over the limit of {limits.memory_mib:.0f}"
            elif seconds > limits.seconds:
                row["skipped"] = f"about {seconds:.0f} s a pass, over the limit of {limits.seconds:.0f}"
        rows.append(row)
    measured = [(case, row) for case, row in zip(cases, rows, strict=True) if row["skipped"] is None]
    if measured:
        times = time_cases([case for case, _ in measured], rounds)
    for case, row in measured:
        row["seconds_forward"] = times[case]["forward"]
        row["seconds_training"] = times[case]["training"]
        row["peak_memory_mib"] = peak_memory(build_training, (case,), case.device, calls=1)
    full = next((row for _, row in measured if row["mode"] == "full"), None)
    for _, row in measured:
        for kind in ("forward", "training"):
            row[f"{kind}_to_full"] = row[f"seconds_{kind}"] / full[f"seconds_{kind}"] if full else None
    return rows


def measure_ways(keys: Sequence[int], rounds: int) -> list[dict]:
    """bf16 on a CPU, forward and backward: three ways to attend, a row per key count and mask."""
    rows = []
    for count in keys:
        heads = random_heads(count, torch.bfloat16, "cpu")
        position = torch.arange(count)[None]
        mask = prefix_causal_bias(position, position, torch.tensor([count // 2]), math.inf, torch.bfloat16)
        for bias in (None, mask):
            ways = {"fused": F.scaled_dot_product_attention, "at_once": attend_at_once, "in_pieces": attend_in_pieces}
            if HEADS * count**2 * 2 * 6 / MIB > LARGEST_AT_ONCE:
                del ways["at_once"]
            calls = {
                name: functools.partial(run, lambda q, k, v, way=way, bias=bias: way(q, k, v, bias), heads, True)
                for name, way in ways.items()
            }
            seconds = {n: statistics.median(s) for n, s in seconds_in_turns(calls, rounds, "cpu").items()}
            row = {"keys": count, "prefix": bias is not None, "seconds_fused": seconds["fused"]}
            row |= {f"{name}_to_fused": seconds[name] / seconds["fused"] for name in ways if name != "fused"}
            rows.append(row)
    return rows


def parse_grid(text: str) -> tuple[int, ...]:
    """``16x16x32`` as three numbers."""
    grid = tuple(int(n) for n in text.split("x"))
    if len(grid) != 3:
        raise argparse.ArgumentTypeError(f"a grid has three sides, as in 8x8x8; got {text}")
    return grid


def print_rows(rows: Sequence[dict]) -> None:
    """One table for all grids."""
    columns = {
        "mode": "mode",
        "grid": "grid",
        "dtype": "dtype",
        "scores_per_head": "scores per head",
        "seconds_forward": "forward, s",
        "seconds_training": "forward + backward, s",
        "training_to_full": "to full",
        "peak_memory_mib": "peak memory, MiB",
        "skipped": "left out",
    }
    for prefix, name in ((True, "prefix-causal mask (pretraining)"), (False, "no mask (fine-tuning)")):
        chosen = [[row.get(key) for key in columns] for row in rows if row["prefix"] is prefix]
        print_table(f"Attention of {HEADS} heads x {HEAD_WIDTH}, batch 1, {name}", list(columns.values()), chosen)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Attention alone: time, memory and scores of each mode.")
    parser.add_argument("--grids", nargs="+", type=parse_grid, default=[parse_grid(grid) for grid in GRIDS])
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--keys", nargs="*", type=int, default=[128, 256, 512, 1024, 2048, 4096], help="last table's")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; in each, every mode runs once")
    parser.add_argument("--memory", type=float, help="MiB that a case may take (default: half of what is available)")
    parser.add_argument("--seconds", type=float, default=20, help="that a case's forward and backward pass may take")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU (default: its own choice)")
    parser.add_argument("--device", default=default_device(), choices=["cpu", "cuda"])
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    machine = machine_facts(arguments.device)
    print_machine(machine)
    memory = arguments.memory if arguments.memory is not None else available_memory(arguments.device) / 2
    limits = Limits(memory, arguments.seconds)

    rows: list[dict] = []
    for prefix in (True, False):
        for dtype in arguments.dtypes:
            before: dict[str, dict] = {}
            for grid in sorted(arguments.grids, key=math.prod):
                cases = [Case(mode, grid, dtype, prefix, arguments.device) for mode in arguments.modes]
                print(f"{'x'.join(map(str, grid))}, {dtype}, {'with' if prefix else 'without'} mask", file=sys.stderr)
                new = measure_grid(cases, before, arguments.rounds, limits)
                before = {row["mode"]: row for row in new}
                rows.extend(new)
    print_rows(rows)

    ways: list[dict] = []
    if arguments.device == "cpu" and arguments.keys:
        ways = measure_ways(arguments.keys, arguments.rounds)
        columns = ["keys", "prefix", "seconds_fused", "at_once_to_fused", "in_pieces_to_fused"]
        print_table(
            "bf16 on a CPU, forward + backward: plain products, at once and in pieces, against the fused kernel",
            ["keys", "mask", "fused, s", "at once to fused", "in pieces to fused"],
            [[row.get(name) for name in columns] for row in ways],
        )
    content = {"benchmark": "attention", "machine": machine, "limits": asdict(limits), "rounds": arguments.rounds}
    write_json(arguments.output, {**content, "rows": rows, "ways": ways})


if __name__ == "__main__":
    main()
