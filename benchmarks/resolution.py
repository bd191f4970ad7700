"""A pretraining step on ever larger volumes in 8^3 patches: `[local, grid]` with groups of a fixed size, and `none`.

    python -m benchmarks.resolution --output resolution.json --picture docs/pictures/resolution.png
    python -m benchmarks.resolution --volumes 128 --layers 12 --rounds 1

The dilation is scaled with the patch grid, so that a sub-grid or window keeps 8^3 patches, as D-Former has it. Two
layers of `base` (a `local` and a `grid` one), batch 1, bf16, ``checkpointing: all``: forward, backward, AdamW.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from digar.networks import SIZES, PretrainingNetwork
from digar.training.losses import NextPatchLoss
from digar.volumes.pictures import save_figure
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.measure import (
    default_device,
    kept_for_backward,
    machine_facts,
    peak_memory,
    print_machine,
    print_table,
    seconds_in_turns,
    write_json,
)

GROUP = 8  # patches along an axis of a sub-grid or window
LABELS = {"seconds": "seconds per step", "peak": "MiB at the peak"}  # of the picture


@dataclass(frozen=True)
class Case:
    """A network and a volume; volume and patch in voxels along each axis."""

    attention: str
    volume: int
    patch: int
    size: str
    layers: int
    checkpointing: str
    device: str

    @property
    def grid(self) -> int:
        return self.volume // self.patch

    @property
    def dilation(self) -> int:
        return max(1, self.grid // GROUP)


def build(case: Case) -> tuple[PretrainingNetwork, Callable[[], Tensor]]:
    """The network and its loss on a random volume, half of which is the prefix."""
    torch.manual_seed(0)
    network = PretrainingNetwork(
        case.volume,
        case.patch,
        size=SIZES[case.size] | {"num_layers": case.layers},
        attention=case.attention.split(","),
        dilation=case.dilation,
        checkpointing=case.checkpointing,
    ).to(case.device)
    image = torch.rand(1, 1, *[case.volume] * 3, device=case.device)
    prefix = torch.tensor([case.grid**3 // 2], device=case.device)
    objective = NextPatchLoss((case.patch,) * 3)

    def loss() -> Tensor:
        with torch.autocast(case.device, torch.bfloat16, cache_enabled=False):
            return objective(network(image, prefix), (image, prefix))

    return network, loss


def build_step(case: Case) -> Callable[[], None]:
    """One training step, ready to be called."""
    network, loss = build(case)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(case: Case, rounds: int) -> dict:
    """The case's row: seconds, MiB at the peak and kept for the backward pass."""
    seconds = statistics.median(seconds_in_turns({"step": build_step(case)}, rounds, case.device)["step"])
    network, loss = build(case)
    return {
        "attention": case.attention,
        "volume": case.volume,
        "patches": case.grid**3,
        "dilation": case.dilation,
        "scores_per_head": max(block.attention.num_scores for block in network.backbone.blocks),
        "seconds": seconds,
        "peak": peak_memory(build_step, (case,), case.device, calls=2),
        "kept": kept_for_backward(network, loss),
    }


def draw(rows: Sequence[dict], picture: Path) -> None:
    """Seconds and MiB against the number of patches, on logarithmic axes, with a line of linear growth."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
        for attention in dict.fromkeys(row["attention"] for row in rows):
            chosen = [row for row in rows if row["attention"] == attention]
            axes.loglog([row["patches"] for row in chosen], [row[key] for row in chosen], "o-", label=attention)
        first, last = (f(row["patches"] for row in rows) for f in (min, max))
        start = rows[0][key]
        axes.loglog([first, last], [start, start * last / first], ":", color="grey", label="linear")
        axes.set(xlabel="patches", ylabel=label)
        axes.legend()
    save_figure(figure, picture)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A pretraining step on ever larger volumes.")
    parser.add_argument("--volumes", nargs="+", type=int, default=[64, 128, 192, 256], help="voxels along each axis")
    parser.add_argument("--patch", type=int, default=8, help="voxels along each axis (default 8)")
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--checkpointing", default="all", choices=["none", "all"])
    parser.add_argument("--full-up-to", type=int, default=4096, help="patches that `none` is measured at, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU (default: its own choice)")
    parser.add_argument("--device", default=default_device(), choices=["cpu", "cuda"])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    machine = machine_facts(arguments.device)
    print_machine(machine)
    case = functools.partial(
        Case,
        patch=arguments.patch,
        size=arguments.size,
        layers=arguments.layers,
        checkpointing=arguments.checkpointing,
        device=arguments.device,
    )
    cases = [case("none", v) for v in arguments.volumes if (v // arguments.patch) ** 3 <= arguments.full_up_to]
    cases += [case("local,grid", volume) for volume in arguments.volumes]
    rows = []
    for number, one in enumerate(cases):
        print(f"{number + 1} of {len(cases)}: {one.attention}, {one.volume}^3 voxels", flush=True)
        rows.append(measure(one, arguments.rounds))
    print_table(
        f"A step of {arguments.layers} layers of {arguments.size}, batch 1, {arguments.patch}^3 patches, bf16",
        ["attention", "volume", "patches", "dilation", "scores per head", "seconds", "peak, MiB", "kept, MiB"],
        [list(row.values()) for row in rows],
    )
    if arguments.picture is not None:
        draw(rows, arguments.picture)
    content = {"benchmark": "resolution", "machine": machine, "largest": asdict(cases[-1]), "rounds": arguments.rounds}
    write_json(arguments.output, {**content, "rows": rows})


if __name__ == "__main__":
    main()
