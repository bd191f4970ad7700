"""Time, cost and disk of pretraining on many volumes with many GPUs: formulas, from a few numbers that can be measured.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --gpus 1 4 --crops_per_gpu 310 --crops_per_core 118 --cores_per_gpu 16

The step's FLOPs are counted in the real network. Where ``--crops_per_gpu`` is not given, a GPU's throughput is the
published peak rate times an assumed utilisation: an extrapolation, not a measurement.
"""

import argparse
from dataclasses import dataclass

import torch
from digar.networks import PretrainingNetwork
from digar.training.losses import NextPatchLoss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import print_table

SAMPLE, PATCH = (128, 128, 128), (16, 16, 16)
BYTES_PER_VOXEL = 2  # int16 or float16, as prepared scans are kept


@dataclass(frozen=True)
class Assumptions:
    """What a plan is made of; rates in units per second, for one GPU, core or node."""

    volumes: int
    epochs: int
    voxels: float
    crops_per_gpu: float
    crops_per_core: float
    cores_per_gpu: int
    read_rate: float  # bytes
    link_rate: float  # bytes
    batch: int
    prepare_seconds: float
    gpus_per_node: int
    price: float  # of a GPU's hour


def plan(given: Assumptions, gpus: int, parameters: int) -> dict[str, float | str]:
    """One row: crops per second that each part allows, the slowest of them, and what follows for the whole run.

    Gradients (4 bytes per weight) go around a ring of all GPUs once per step, not hidden behind the backward pass: the
    worst case.
    """
    nodes = -(-gpus // given.gpus_per_node)
    step = given.batch / given.crops_per_gpu
    exchange = 2 * (gpus - 1) / gpus * 4 * parameters / given.link_rate
    allowed = {
        "GPUs": gpus * given.batch / (step + exchange),
        "loader cores": gpus * given.cores_per_gpu * given.crops_per_core,
        "reading": nodes * given.read_rate / (BYTES_PER_VOXEL * torch.Size(SAMPLE).numel()),
    }
    slowest = min(allowed, key=allowed.get)
    hours = given.volumes * given.epochs / allowed[slowest] / 3600
    return {
        "gpus": gpus,
        **{f"{name}, crops/s": rate for name, rate in allowed.items()},
        "bottleneck": slowest,
        "hours": hours,
        "cost": hours * gpus * given.price,
        "preparing, hours": given.volumes * given.prepare_seconds / (gpus * given.cores_per_gpu) / 3600,
    }


def step_flop(network: PretrainingNetwork) -> float:
    """FLOP of one crop: forward and backward, a multiplication and an addition counted as two."""
    image, prefix = torch.rand(1, 1, *SAMPLE), torch.tensor([100])
    with FlopCounterMode(display=False) as counter:
        NextPatchLoss(PATCH)(network(image, prefix), (image, prefix)).backward()
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--volumes", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=50, help="passes, one crop of each volume")
    parser.add_argument("--voxels", type=float, default=14.5e6, help="per volume at the training spacing")
    parser.add_argument("--peak", type=float, default=989e12, help="published dense bf16 FLOP/s of the GPU")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak, assumed")
    parser.add_argument("--crops_per_gpu", type=float, help="measured; takes the place of peak and utilisation")
    parser.add_argument("--crops_per_core", type=float, default=35.0, help="that a data worker makes")
    parser.add_argument("--cores_per_gpu", type=int, default=12)
    parser.add_argument("--read_rate", type=float, default=5e9, help="bytes per second and node")
    parser.add_argument("--link_rate", type=float, default=50e9, help="bytes per second between GPUs")
    parser.add_argument("--batch", type=int, default=64, help="per GPU")
    parser.add_argument("--prepare_seconds", type=float, default=10.0, help="a core's, to read and resample a volume")
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU's hour")
    options = vars(parser.parse_args())

    torch.manual_seed(0)
    network = PretrainingNetwork(SAMPLE, PATCH, size="base", attention="full+sequence")
    parameters = sum(weight.numel() for weight in network.parameters())
    flop = step_flop(network)
    rate = options.pop("peak") * options.pop("utilisation") / flop
    print(
        f"{parameters / 1e6:.1f} M weights; {flop / 1e12:.3f} TFLOP per crop; a GPU at the assumed rate: {rate:.0f}/s"
    )
    counts = options.pop("gpus")
    given = Assumptions(**{**options, "crops_per_gpu": options["crops_per_gpu"] or rate})
    rows = [plan(given, gpus, parameters) for gpus in counts]
    print_table("One run", list(rows[0]), [list(row.values()) for row in rows])
    prepared = given.volumes * given.voxels * BYTES_PER_VOXEL
    print(f"\nprepared scans: {prepared / 1e12:.2f} TB; a state: {12 * parameters / 1e9:.2f} GB, two are kept")
    published = given.volumes * 75 * 4 * torch.Size(SAMPLE).numel()
    print(f"offline patches as published (75 crops of float32 a scan): {published / 1e12:.0f} TB")


if __name__ == "__main__":
    main()
