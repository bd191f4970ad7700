"""Inference over folders: this bundle's config beside the same network through a plain config of MONAI's pieces.

    python -m benchmarks.inference --images DATA/Task04_Hippocampus/imagesTr --output inference.json

Each variant runs in a process of its own; start-up is not counted. The plain config (``plain_inference.json``) is
what zoo bundles have: float32, MONAI's loading, spacing, sliding window, inverting and saving, with 0 or 2 loader
workers. ``published`` is the plain config with AR-SSL4M's overlap of 0.75. On the large volume it would take hours: the
number of its windows is told instead. ``digar, foreground`` leaves out windows that hold nothing but air; in a
generated CT the network, which never saw the like, labels some of that noise when it looks. ``nnU-Net`` is its own
predictor around the same network (``pip install nnunetv2``), see ``benchmarks.nnunet_predictor``: the same windows, in
float32, with a process each for preprocessing and export beside its own; normalised otherwise, so its masks are not
compared.

    python -m benchmarks.inference --memory

runs a generated CT of 512 x 512 x 800 voxels through a network of 14 classes with random weights, for its peak memory.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from scipy import ndimage

from benchmarks.measure import MIB, machine_facts, print_machine, print_table, write_json

ROOT = Path(__file__).parents[1]
CONFIG, PLAIN = str(ROOT / "configs/inference.json"), str(ROOT / "benchmarks/plain_inference.json")
VARIANTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "digar": ([CONFIG], {}),
    "digar, OpenVINO": ([CONFIG, str(ROOT / "configs/backend.json")], {}),
    "digar, foreground": ([CONFIG], {"foreground": 0.05}),
    "plain, 0 workers": ([CONFIG, PLAIN], {"num_workers": 0}),
    "plain, 2 workers": ([CONFIG, PLAIN], {"num_workers": 2}),
    "published": ([CONFIG, PLAIN], {"overlap": 0.75}),
}
PLAIN_VARIANTS = ("plain, 0 workers", "plain, 2 workers")
NNUNET = {"nnU-Net": False, "nnU-Net, mirroring": True}


@dataclass
class Job:
    """One variant over one folder."""

    files: list[str]
    options: dict[str, Any]
    threads: int
    mirroring: bool | None = None  # by nnU-Net's predictor; None: by the config


def run_job(job: Job) -> dict[str, float]:
    """Seconds of the run itself, and the largest resident size in MiB, of this process (loader workers apart)."""
    torch.set_num_threads(job.threads)
    if job.mirroring is not None:
        from benchmarks.nnunet_predictor import predict

        images, output = Path(job.options["dataset_dir"]), Path(job.options["output_dir"])
        return {
            "seconds": predict(CONFIG, str(ROOT), images, output, job.mirroring),
            "peak_memory_mib": peak_resident(),
        }
    workflow = ConfigWorkflow(
        config_file=job.files, workflow_type="inference", logging_file=False, bundle_root=str(ROOT), **job.options
    )
    workflow.initialize()
    began = time.perf_counter()
    workflow.run()
    seconds = time.perf_counter() - began
    workflow.finalize()
    return {"seconds": seconds, "peak_memory_mib": peak_resident()}


def peak_resident() -> float:
    """Largest resident size of this process so far in MiB. Unlike ``ru_maxrss`` it forgets the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # macOS, in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def in_a_process(job: Job) -> dict[str, float]:
    """:func:`run_job` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_job, job).result()


def generated_ct(path: Path, shape: Sequence[int], spacing: Sequence[float], seed: int = 0) -> None:
    """Write a body of organs of different density in noisy air, in Hounsfield units, int16."""
    rng = np.random.default_rng(seed)
    coarse = tuple(math.ceil(n / 8) for n in shape)
    organs = ndimage.gaussian_filter(rng.normal(size=coarse).astype(np.float32), 2)
    organs = 60 * organs / organs.std()
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in coarse)
    body = ((x[:, None] / 0.85) ** 2 + (y[None] / 0.6) ** 2)[..., None] + 0 * z < 1
    smooth = np.where(body, organs + 40, -1000).astype(np.float32)
    volume = np.empty(shape, np.int16)
    for k in range(shape[2]):  # slice by slice: the volume may be as large as the memory
        plane = smooth[:, :, k // 8].repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
        volume[:, :, k] = plane + rng.normal(0, 12, plane.shape)
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1])), path)


def agreement(found: Path, expected: Path) -> tuple[float, float]:
    """Share of equal voxels, and Dice of everything labelled, over all masks of two folders."""
    equal = total = both = labelled = 0
    for file in sorted(expected.rglob("*_mask.nii.gz")):
        a, b = (np.asanyarray(nib.load(folder / file.relative_to(expected)).dataobj) for folder in (found, expected))
        equal, total = equal + int((a == b).sum()), total + a.size
        both, labelled = both + 2 * int(((a == b) & (a > 0)).sum()), labelled + int((a > 0).sum() + (b > 0).sum())
    return equal / max(total, 1), both / max(labelled, 1)


def number_of_windows(shape: Sequence[int], roi: Sequence[int], overlap: float) -> int:
    """Windows of MONAI's sliding window over a volume."""
    counts = [
        math.ceil((n - r) / max(int(r * (1 - overlap)), 1)) + 1 if n > r else 1 for n, r in zip(shape, roi, strict=True)
    ]
    return math.prod(counts)


def compare(images: Path, variants: Sequence[str], threads: int, rounds: int, work: Path) -> list[dict[str, Any]]:
    """A row per variant over a folder of images: the fastest of several rounds, in turns."""
    count = len(list(images.iterdir()))
    rows: dict[str, dict[str, Any]] = {}
    for turn, variant in itertools.product(range(rounds), variants):
        files, options = VARIANTS.get(variant, ([], {}))
        out = work / f"{images.name}-{variant.replace(', ', '-').replace(' ', '-')}-{turn}"
        options = {**options, "dataset_dir": str(images), "output_dir": str(out)}
        result = in_a_process(Job(files, options, threads, NNUNET.get(variant)))
        print(f"{images.name}, {variant}: {result['seconds']:.1f} s, {result['peak_memory_mib']:.0f} MiB", flush=True)
        row = rows.setdefault(variant, {"variant": variant, "seconds": math.inf, "peak_memory_mib": 0.0, "masks": out})
        row["seconds"] = min(row["seconds"], result["seconds"])
        row["peak_memory_mib"] = max(row["peak_memory_mib"], result["peak_memory_mib"])
    best = min((rows[name]["seconds"] for name in PLAIN_VARIANTS if name in rows), default=None)
    peer = rows["nnU-Net"]["seconds"] if "nnU-Net" in rows else None
    for row in rows.values():
        masks = row.pop("masks")
        row["files_per_minute"] = 60 * count / row["seconds"]
        row["times_the_better_plain"] = best / row["seconds"] if best else None
        row["times_nnunet"] = peer / row["seconds"] if peer else None
        reference = work / f"{images.name}-plain-0-workers-0"
        row["equal_voxels"], row["dice"] = (
            agreement(masks, reference) if reference.is_dir() and row["variant"] not in NNUNET else (None, None)
        )
    return list(rows.values())


def measure_memory(shape: Sequence[int], num_classes: int, threads: int, work: Path) -> dict[str, Any]:
    """Peak memory of one large volume through a network of many classes with random weights."""
    (work / "ct").mkdir()
    generated_ct(work / "ct/volume.nii.gz", shape, (1.0, 1.0, 1.0))
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_files([CONFIG]))
    config.update({"num_classes": num_classes})
    torch.save(config.get_parsed_content("network_def").state_dict(), work / "random.pt")
    options = {
        "num_classes": num_classes,
        "weights_file": str(work / "random.pt"),
        "dataset_dir": str(work / "ct"),
        "output_dir": str(work / "ct-masks"),
    }
    row = in_a_process(Job([CONFIG], options, threads))
    report = json.loads((work / "ct-masks/report.json").read_text(encoding="utf-8"))
    return {"shape": list(shape), "classes": num_classes, **row, "done": report["run"]["done"]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of small images (NIfTI)")
    parser.add_argument("--count", type=int, default=200, help="small images; taken again where there are fewer")
    parser.add_argument(
        "--large", type=int, nargs=3, default=[512, 512, 300], help="voxels of the large volume; 0 0 0: none"
    )
    parser.add_argument("--large_spacing", type=float, nargs=3, default=[0.8, 0.8, 1.0], help="mm")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *NNUNET])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each variant; the fastest counts")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a large CT alone")
    parser.add_argument("--memory_shape", type=int, nargs=3, default=[512, 512, 800])
    parser.add_argument("--classes", type=int, default=14, help="of the network of --memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args(argv)
    machine = machine_facts("cpu")
    print_machine(machine)
    content: dict[str, Any] = {"benchmark": "inference", "machine": machine}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.memory:
            row = measure_memory(arguments.memory_shape, arguments.classes, arguments.threads, work)
            print_table("A large CT, many classes", list(row), [list(row.values())])
            write_json(arguments.output, {**content, "memory": row})
            return
        header = [
            "variant",
            "seconds",
            "peak memory, MiB",
            "files per minute",
            "times the better plain",
            "times nnU-Net",
            "equal",
            "Dice",
        ]
        if arguments.images is not None:
            files = sorted(file for file in arguments.images.glob("*.nii*") if not file.name.startswith("._"))
            if not files:
                sys.exit(f"{arguments.images} contains no NIfTI file")
            (work / "small").mkdir()
            for number, file in zip(range(arguments.count), itertools.cycle(files), strict=False):
                suffix = ".nii.gz" if file.name.endswith(".gz") else ".nii"
                shutil.copy(file, work / "small" / f"{number:04d}{suffix}")
            rows = compare(work / "small", arguments.variants, arguments.threads, arguments.rounds, work)
            print_table(f"{arguments.count} small images", header, [list(row.values()) for row in rows])
            content["small"] = rows
        if all(arguments.large):
            (work / "large").mkdir()
            generated_ct(work / "large/volume.nii.gz", arguments.large, arguments.large_spacing)
            variants = [variant for variant in arguments.variants if variant != "published"]
            rows = compare(work / "large", variants, arguments.threads, arguments.rounds, work)
            print_table(f"One volume of {arguments.large} voxels", header, [list(row.values()) for row in rows])
            config = ConfigParser.load_config_file(CONFIG)
            working = [
                round(n * s / w)
                for n, s, w in zip(arguments.large, arguments.large_spacing, config["spacing"], strict=True)
            ]
            windows = {
                overlap: number_of_windows(working, config["roi_size"], overlap)
                for overlap in (config["overlap"], 0.75)
            }
            print(f"\nWindows of the whole volume by overlap: {windows}")
            content |= {"large": rows, "windows": windows}
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
