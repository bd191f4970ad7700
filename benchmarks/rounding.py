"""How far apart one process and two end, from rounding alone: the same steps, summed in another order.

    python -m benchmarks.rounding

Two processes compute the gradient of a batch as the mean of its halves' gradients. Here one process does either, so
that nothing else differs. Weights are compared after every step, in float32 and in float64, where rounding is 1e9 times
smaller: what shrinks by as much is rounding.
"""

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from digar.networks import SegmentationNetwork
from digar.training.optimizers import build_adamw
from torch import nn
from torch.nn import functional

from benchmarks.measure import print_table

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, rate 0.005": lambda network: torch.optim.SGD(network.parameters(), lr=0.005),
    "SGD, rate 0.05": lambda network: torch.optim.SGD(network.parameters(), lr=0.05),
    "AdamW, rate 0.003": lambda network: build_adamw(network, 0.003),
}


def largest_differences(
    make: Callable[[nn.Module], torch.optim.Optimizer], dtype: torch.dtype, steps: int
) -> tuple[list[float], float]:
    """The largest difference of a weight after every step, and that of a prediction after the last.

    Args:
        make: builds the optimizer.
        dtype: of weights and crops.
        steps: how many.
    """
    torch.manual_seed(0)
    network = SegmentationNetwork(
        16, 4, out_channels=3, head="light", attention="local+grid",
        size={"hidden_size": 24, "num_layers": 2, "num_heads": 2},
    ).to(dtype)  # fmt: skip
    runs = [(network, 1), (copy.deepcopy(network), 2)]
    optimizers = [make(network) for network, _ in runs]
    generator = torch.Generator().manual_seed(1)
    differences = []
    for _ in range(steps):
        image = torch.randn(4, 1, 16, 16, 16, generator=generator).to(dtype)
        label = torch.randint(0, 3, (4, 16, 16, 16), generator=generator)
        for (network, parts), optimizer in zip(runs, optimizers, strict=True):
            optimizer.zero_grad()
            for images, labels in zip(image.chunk(parts), label.chunk(parts), strict=True):
                (functional.cross_entropy(network(images), labels) / parts).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 12.0)
            optimizer.step()
        pairs = zip(*(network.parameters() for network, _ in runs), strict=True)
        differences.append(max((one - two).abs().max().item() for one, two in pairs))
    with torch.no_grad():
        one, two = (network.eval()(image) for network, _ in runs)
    return differences, (one - two).abs().max().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args(arguments).steps
    rows = []
    for name, make in OPTIMIZERS.items():
        for dtype in (torch.float32, torch.float64):
            differences, logits = largest_differences(make, dtype, steps)
            rows.append([name, str(dtype).removeprefix("torch."), f"{differences[0]:.1e}", f"{differences[-1]:.1e}",
                         f"{logits:.1e}"])  # fmt: skip
    header = ["optimizer", "type", "weights, step 1", f"weights, step {steps}", "logits"]
    print_table(f"One process against two, {steps} steps", header, rows)


if __name__ == "__main__":
    main()
