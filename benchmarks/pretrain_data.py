"""Samples for pretraining: how many per second, at how many bytes per scan, and whether the trainer waits for them.

    python -m benchmarks.pretrain_data --output data.json
    python -m benchmarks.pretrain_data --task DATA/Task90_LeftAtrium --spacing 0.625 --scans 8

Three ways to a random crop, as stored (the training's device scales it), in turns within one process:

- ``no cache``: the scan is read, decompressed and resampled for every sample.
- ``cache``: a crop is read from the scan's compact memory-mapped copy.
- ``offline patches``: AR-SSL4M's way as the peer: crops stored beforehand as float32 .npy, here scaled already, 50 to
  100 of them per scan; a sample is one of them, read whole.

``cold`` drops the files from the system's cache before each sample (Linux), as it is with more data than memory.
Without ``--task`` the scans are generated: int16, gzipped, CT-like in size and numbers, at 1.5 mm.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from digar.data.datalists import scans
from digar.data.sequences import (
    RandPrefixd,
    Sequenced,
    SequenceDataset,
    Spatial,
    join_samples,
    prepare_next_patch,
    scale_samples,
)
from digar.data.sequences.crops import NUM_PARTS
from digar.networks import PretrainingNetwork
from digar.networks.precision import PrecisionInferer, best_precision
from digar.training.losses import NextPatchLoss
from digar.training.optimizers import build_adamw
from digar.volumes.prepared import VolumeStore
from monai.data import DataLoader
from monai.transforms import Compose
from scipy import ndimage
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks.measure import MIB, default_device, machine_facts, print_machine, print_table, write_json

OFFLINE_PATCHES = (50, 100)  # per scan, as AR-SSL4M's program stores them
CT_SHAPE = (256, 256, 200)  # 384 x 384 x 300 mm at 1.5 mm


def write_ct(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    """A CT-like scan: air at -1000, a body of smooth tissue with noise, some bone; int16, gzipped."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(0, 1, [n // 16 + 2 for n in shape])
    smooth = ndimage.zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    x, y, _ = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    body = np.broadcast_to((x / 0.85) ** 2 + (y / 0.65) ** 2 < 1, shape)
    tissue = np.where(smooth > 1.2, 700, 40 + 60 * smooth)
    noise = generator.normal(0, 12, shape)
    image = np.where(body, tissue, -1000) + noise
    nib.save(nib.Nifti1Image(np.rint(image).clip(-1024, 3071).astype(np.int16), np.diag([1.5, 1.5, 1.5, 1])), path)


class StoredPatches(Dataset):
    """The peer: each sample is a stored float32 crop, read whole."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "image": torch.from_numpy(np.load(self.files[index])),
            "prefix": torch.tensor(0),
            "kind": torch.tensor(0),
            "extents": torch.zeros(NUM_PARTS, 3, dtype=torch.int64),
        }


def make_dataset(files: list[str], arguments: argparse.Namespace, cache_dir: Path | None) -> SequenceDataset:
    """The dataset of ``configs/pretrain.yaml`` for spatial sequences, its scans prepared."""
    store = VolumeStore([arguments.spacing] * 3, cache_dir)
    for path in tqdm(files, desc="preparing scans" if cache_dir else "checking scans", unit="scan", leave=False):
        store.prepare(path)
    kinds = {"spatial": Spatial([arguments.sample] * 3, None)}
    transform = Compose([Sequenced(kinds), RandPrefixd("image", arguments.patch)])
    cases = [{"kind": "spatial", "image": path} for path in files]
    return SequenceDataset(cases, kinds, store, transform, 0, {"spatial": 1.0}, arguments.samples)


def forget(files: list[Path]) -> None:
    """Drop the files from the system's cache, so that the next read goes to the disk."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def samples_per_second(
    datasets: dict[str, Dataset],
    count: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Samples drawn per second of this process, median over rounds in which each way has its turn.

    The processor's time is taken, so that other programs on the machine count little; it does not hold waiting for a
    disk.
    """
    rates: dict[str, list[float]] = {name: [] for name in datasets}
    for turn in range(rounds + 1):
        for name, dataset in datasets.items():
            number = 2 if name == "no cache" else count
            seconds = 0.0
            for index in range(number):
                before(name)
                start = clock()
                dataset[(turn * number + index) % len(dataset)]
                seconds += clock() - start
            if turn > 0:
                rates[name].append(number / seconds)
    return {name: float(np.median(values)) for name, values in rates.items()}


def loader_rates(datasets: dict[str, Dataset], batch: int, workers: int, rounds: int) -> dict[str, float]:
    """Samples per second as a trainer without any work of its own receives them, batches and workers included."""
    rates: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(rounds):
        for name, dataset in datasets.items():
            batches = iter(
                DataLoader(dataset, batch_size=batch, num_workers=workers, shuffle=True, collate_fn=join_samples)
            )
            next(batches)  # the workers have started
            start = time.perf_counter()
            number = sum(len(part["image"]) for part in batches)
            rates[name].append(number / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in rates.items()}


def waiting(dataset: Dataset, arguments: argparse.Namespace, workers: int) -> dict[str, float]:
    """Share of a training's time that is spent waiting for the next batch, and what one step takes without it."""
    device = torch.device(arguments.device)
    network = PretrainingNetwork(arguments.sample, arguments.patch, size=arguments.size, attention=arguments.attention)
    network.to(device)
    optimizer = build_adamw(network, learning_rate=1e-4, weight_decay=0.01, gate_rate=100.0)
    loss_function = NextPatchLoss(network.backbone.patch_size)
    inferer = PrecisionInferer(best_precision(device))
    waited = worked = 0.0
    batches = iter(
        DataLoader(dataset, batch_size=arguments.batch, num_workers=workers, shuffle=True, collate_fn=join_samples)
    )
    for step in range(arguments.steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        received = time.perf_counter()
        image, target, inputs, _ = prepare_next_patch(batch, device, True)
        optimizer.zero_grad()
        loss = loss_function(inferer(image, network, *inputs), target)
        loss.backward()
        optimizer.step()
        loss.item()
        if step > 0:  # the first waits for the workers' start
            waited += received - start
            worked += time.perf_counter() - received
    return {"share_waiting": waited / (waited + worked), "seconds_per_step": worked / arguments.steps}


def scaling_rate(dataset: Dataset, device: torch.device, rounds: int) -> float:
    """Samples per second that the training's device resizes and scales, median over rounds of one batch of 8."""
    batch = join_samples([dataset[index % len(dataset)] for index in range(8)])
    image, seconds = batch["image"].to(device), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        scale_samples(image, batch["extents"]).flatten()[0].item()  # which waits for a GPU
        seconds.append(time.perf_counter() - start)
    return len(image) / float(np.median(seconds[1:]))


def bytes_per_scan(files: list[str], cache_dir: Path, patch_bytes: int) -> dict[str, float]:
    """What each way keeps on disk for a scan beside the scan itself."""
    cache = sum(file.stat().st_size for file in cache_dir.rglob("*") if file.is_file()) / len(files)
    return {"no cache": 0.0, "cache": cache, **{f"{n} patches": float(n * patch_bytes) for n in OFFLINE_PATCHES}}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run and print the comparison; returns what is written to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="a folder of scans or an MSD task (default: generated CT-like scans)")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm (default: %(default)s)")
    parser.add_argument("--scans", type=int, default=4, help="scans used (default: %(default)s)")
    parser.add_argument("--shape", type=int, nargs=3, default=CT_SHAPE, help="of generated scans, in voxels")
    parser.add_argument("--sample", type=int, default=128, help="edge of a sample in voxels (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="samples per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="of the loader (default: 0 1)")
    parser.add_argument("--steps", type=int, default=8, help="training steps for the waiting; 0 leaves it out")
    parser.add_argument("--size", default="base", help="of the network that is trained (default: %(default)s)")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--attention", default="none")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    machine = machine_facts(options.device)
    print_machine(machine)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.task:
            files = [case["image"] for case in scans(options.task)][: options.scans]
        else:
            for index in tqdm(range(options.scans), desc="generating scans", leave=False):
                write_ct(folder / f"ct_{index}.nii.gz", tuple(options.shape), index)
            files = [str(file) for file in sorted(folder.glob("ct_*.nii.gz"))]
        cached = make_dataset(files, options, folder / "cache")
        patches = []
        for index in tqdm(range(len(cached)), desc="storing the peer's patches", leave=False):
            patches.append(folder / f"patch_{index}.npy")
            sample = cached[index]
            np.save(patches[-1], scale_samples(sample["image"][None], sample["extents"][None])[0].numpy())
        ways = {
            "no cache": make_dataset(files, options, None),
            "cache": cached,
            "offline patches": StoredPatches(patches),
        }
        fast = {name: ways[name] for name in ("cache", "offline patches")}
        copies = list((folder / "cache").rglob("*.npy"))
        on_disk = {"cache": copies, "offline patches": patches}

        result: dict[str, Any] = {"machine": machine, "options": vars(options)}
        result["bytes_per_scan"] = bytes_per_scan(files, folder / "cache", patches[0].stat().st_size)
        result["scan_shapes"] = [list(cached.volumes.grids[path].shape) for path in files]
        result["warm"] = samples_per_second(ways, options.samples, options.rounds)
        if hasattr(os, "posix_fadvise"):
            result["cold"] = samples_per_second(
                fast, 16, options.rounds, time.perf_counter, lambda name: forget(on_disk[name])
            )
        result["loader"] = {
            str(workers): loader_rates(fast, options.batch, workers, options.rounds) for workers in options.workers
        }
        result["scaling_on_device"] = scaling_rate(cached, torch.device(options.device), options.rounds)
        if options.steps > 0:
            result["waiting"] = {str(workers): waiting(cached, options, workers) for workers in options.workers}

    print_results(result)
    write_json(options.output, result)
    return result


def print_results(result: dict[str, Any]) -> None:
    """The tables."""
    size = result["bytes_per_scan"]
    header = ["kept per scan", "MiB", "cache is 1 / "]
    print_table("Space", header, [[name, value / MIB, value / size["cache"]] for name, value in size.items()])
    titles = {"warm": "warm, per second of processor", "cold": "cold, one process"}
    rows = []
    for title in titles:
        for name, rate in result.get(title, {}).items():
            rows.append([titles[title], name, rate, rate / result[title]["offline patches"]])
    for workers, rates in result["loader"].items():
        for name, rate in rates.items():
            rows.append([f"warm, loader with {workers} workers", name, rate, rate / rates["offline patches"]])
    print_table("Samples", ["where", "way", "per second", "to offline patches"], rows)
    print(f"\n{result['scaling_on_device']:.0f} samples per second resized and scaled on {result['options']['device']}")
    if "waiting" in result:
        rows = [[workers, *values.values()] for workers, values in result["waiting"].items()]
        print_table("Training from the cache", ["workers", "share of time waiting", "seconds per step"], rows)


if __name__ == "__main__":
    main()
