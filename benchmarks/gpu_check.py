"""Everything that a GPU should do, in eight minutes: right numbers first, then speed and memory side by side.

    bash scripts/check_gpu.sh                                 # on one GPU
    python -m benchmarks.gpu_check --device cpu --toy         # the same steps at toy size

Sections, each with its own row of the report:

- ``golden``, ``numbers``: the published programs' outputs where ``DIGAR_GOLDEN`` names their folder; every attention
  mode in float32 and bf16, some compiled, forward and gradients, against float32 on the CPU.
- ``step``: the pretraining step of ``base`` against the published way and against the rate that the device reaches in
  the step's matrix products alone, in the same run; 512 and 4096 tokens.
- ``memory``: peak memory of these steps.
- ``data``: samples per second of the loader beside the samples per second that the step takes.
- ``finetuning``: a step on crops of 128x128x8 voxels with either head.
- ``inference``: a folder with a volume of 512x512x300 voxels, files in and masks out.
- ``fallback``: when memory runs out, windows are taken fewer at once; the logits stay the same.

A section that fails is told as failed, the others go on, and the command ends with 1.
"""

import argparse
import functools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from digar.inference.windows import WindowInferer
from digar.networks import PretrainingNetwork, SegmentationNetwork
from digar.networks.compilation import compile_blocks, missing_compiler
from digar.training.losses import PooledDiceCELoss
from monai.bundle import ConfigWorkflow

from benchmarks import pretrain_data, pretrain_step
from benchmarks.measure import DTYPES, MIB, default_device, machine_facts, print_machine, print_table, write_json
from benchmarks.measure import seconds_in_turns as in_turns

ROOT = Path(__file__).parents[1]
MODES = ("none", "full+sequence", "local+grid", "local,grid")
COMPILED = {("none", "bf16"), ("full+sequence", "bf16"), ("local+grid", "float32")}  # compiling takes the time
TOLERANCE = {"float32": 1e-3, "bf16": 5e-2}  # of the largest value; TF32 is off
STEP_VARIANTS = ["published-float32", "published-bf16", "none-bf16", "none-bf16-compiled", "full+sequence-bf16",
                 "full+sequence-bf16-compiled", "local+grid-bf16", "local+grid-bf16-compiled"]  # fmt: skip
LONG_VARIANTS = ["published-bf16", "none-bf16", "full+sequence-bf16", "local+grid-bf16", "local,grid-bf16"]


@dataclass(frozen=True)
class Sizes:
    """What is measured; the toy sizes only show that every section runs."""

    step: pretrain_step.Setting
    long_step: pretrain_step.Setting
    rounds: int
    scans: int
    crop: tuple[int, int, int]
    crops: int
    ct: tuple[int, int, int]
    toy: bool = False

    @classmethod
    def of(cls, device: str, toy: bool) -> "Sizes":
        setting = functools.partial(pretrain_step.Setting, device=device)
        if toy:
            step = setting(size="tiny", image=32, patch=16, batch=2)
            return cls(step, replace(step, patch=8), 1, 1, (32, 32, 8), 1, (48, 48, 32), True)
        step = setting(size="base", image=128, patch=16, batch=64)
        return cls(step, replace(step, patch=8, batch=8), 5, 4, (128, 128, 8), 8, (512, 512, 300))


Rows = list[dict[str, Any]]


# Numbers


def golden_numbers(sizes: Sizes) -> Rows:
    """The golden tests of the test suite; they compute on the CPU, where their tolerance is defined."""
    if not os.environ.get("DIGAR_GOLDEN"):
        return [{"what": "published programs' outputs", "result": "left out: DIGAR_GOLDEN names no folder"}]
    command = [sys.executable, "-m", "pytest", "-q", "tests/networks/test_golden.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the golden tests fail: {run.stdout.strip().splitlines()[-1]}")
    return [{"what": "published programs' outputs", "result": run.stdout.strip().splitlines()[-1]}]


def computed(mode: str, device: str, dtype: torch.dtype, compiled: bool) -> list[torch.Tensor]:
    """Prediction and the gradient of the first block's projection, in float32 on the CPU, of a fixed small network."""
    torch.manual_seed(0)
    size = {"hidden_size": 96, "num_layers": 2, "num_heads": 4}
    network = PretrainingNetwork(32, 4, size=size, attention=mode.split(","), gate_init=0.3).to(device)
    if compiled:
        torch.compiler.reset()
        compile_blocks(network, True)
    image = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    prefix = torch.tensor([5, 300], device=device)
    with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
        prediction = network(image, prefix)
        prediction.float().square().mean().backward()
    gradient = network.backbone.blocks[0].attention.qkv.weight.grad
    return [prediction.detach().float().cpu(), gradient.float().cpu()]


def mode_numbers(sizes: Sizes) -> Rows:
    """Largest difference of each mode to float32 on the CPU, relative to the largest value."""
    device = sizes.step.device
    can_compile = not sizes.toy and missing_compiler(torch.device(device)) is None
    rows: Rows = []
    for mode in MODES:
        expected = computed(mode, "cpu", torch.float32, False)
        for name, dtype in DTYPES.items():
            for compiled in (False, True) if can_compile and (mode, name) in COMPILED else (False,):
                found = computed(mode, device, dtype, compiled)
                differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
                row = {"attention": mode, "precision": name, "compiled": compiled}
                rows.append(row | dict(zip(("prediction", "gradient"), differences, strict=True)))
                if not max(differences) <= TOLERANCE[name]:
                    raise RuntimeError(f"{row}: {max(differences):.2g} apart, at most {TOLERANCE[name]} is right")
    return rows


# Speed and memory


def usable(variants: Sequence[str], sizes: Sizes) -> list[str]:
    can_compile = not sizes.toy and missing_compiler(torch.device(sizes.step.device)) is None
    return [v for v in variants if can_compile or not v.endswith("-compiled")]


def steps(setting: pretrain_step.Setting, variants: Sequence[str], rounds: int) -> Rows:
    """The rows of ``benchmarks.pretrain_step``, with FLOP/s and its share of the products' rate."""
    products = pretrain_step.measure_products(setting, rounds)
    floors = {name: math.fsum(row["seconds_per_step"] for row in products if row["dtype"] == name) for name in DTYPES}
    rows = pretrain_step.measure_steps(variants, setting, rounds, floors)
    tokens = setting.num_patches
    for row in rows:
        name = pretrain_step.parse_variant(row["variant"])[0]
        flops = None if name in ("published", "vit") else pretrain_step.step_gflop(name, setting) / row["seconds"] / 1e3
        row |= {"tokens": tokens, "batch": setting.batch, "tflop_per_second": flops}
    return rows


def step_speed(sizes: Sizes) -> Rows:
    short = steps(sizes.step, usable(STEP_VARIANTS, sizes), sizes.rounds)
    return short + steps(sizes.long_step, LONG_VARIANTS, sizes.rounds)


def step_memory(sizes: Sizes) -> Rows:
    variants = usable(["published-bf16", "none-bf16", "none-bf16-all", *LONG_VARIANTS[2:]], sizes)
    return [
        {"tokens": setting.num_patches, **row}
        for setting in (sizes.step, sizes.long_step)
        for row in pretrain_step.measure_memory(variants, setting)
    ]


def loader_speed(sizes: Sizes) -> Rows:
    """Samples per second of the prepared copies through a loader, beside those that a step takes."""
    edge = sizes.step.image
    shape = [max(edge, n // 2) for n in sizes.ct]
    words = [
        "--scans", str(sizes.scans), "--shape", *map(str, shape), "--sample", str(edge), "--batch",
        str(min(sizes.step.batch, 8)), "--samples", str(16 if edge < 128 else 128), "--rounds", "1", "--steps", "0",
        "--workers", str(min(os.cpu_count() or 1, 8)), "--device", sizes.step.device,
    ]  # fmt: skip
    result = pretrain_data.main(words)
    rows = [
        {"workers": workers, "way": way, "samples_per_second": rate}
        for workers, rates in result["loader"].items()
        for way, rate in rates.items()
    ]
    return [*rows, {"workers": "", "way": "scaling on the device", "samples_per_second": result["scaling_on_device"]}]


def finetuning_speed(sizes: Sizes) -> Rows:
    """Forward, backward and optimizer of segmentation on flat crops, by head."""
    device, rows = torch.device(sizes.step.device), []
    image = torch.rand(sizes.crops, 1, *sizes.crop, device=device)
    label = (torch.rand(sizes.crops, 1, *sizes.crop, device=device) * 4).floor()
    calls: dict[str, Callable[[], object]] = {}
    for head in ("light", "unetr"):
        network = SegmentationNetwork(
            sizes.crop, (8, 8, 2), out_channels=4, head=head, size="tiny", attention="full+sequence"
        ).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        calls[head] = functools.partial(_finetuning_step, network, optimizer, image, label)
    turns = in_turns(calls, sizes.rounds, sizes.step.device)
    for head, seconds in turns.items():
        rows.append({"head": head, "batch": sizes.crops, "seconds": statistics.median(seconds)})
    return rows


def _finetuning_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor
) -> None:
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        loss = PooledDiceCELoss()(network(image), label)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


# Inference


def folder_inference(sizes: Sizes) -> Rows:
    """Seconds and peak memory of one large volume, files in and masks out, with the shipped model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        generator = np.random.default_rng(0)
        voxels = generator.integers(0, 1000, sizes.ct, dtype=np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), images / "ct.nii.gz")
        for precision in ("float32", "bfloat16"):
            if sizes.step.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            workflow = ConfigWorkflow(
                config_file=str(ROOT / "configs/inference.json"), logging_file=False, bundle_root=str(ROOT),
                dataset_dir=str(images), output_dir=f"{folder}/{precision}", precision=precision,
                device=f"$torch.device('{sizes.step.device}')",
            )  # fmt: skip
            workflow.initialize()
            workflow.run()
            if not (Path(folder) / precision / "ct_mask.nii.gz").is_file():
                raise RuntimeError("there is no mask: see the log above")
            peak = torch.cuda.max_memory_allocated() / MIB if sizes.step.device == "cuda" else None
            voxel = "x".join(map(str, sizes.ct))
            rows.append({"volume": voxel, "precision": precision, "seconds": time.perf_counter() - began,
                         "gpu_memory_mib": peak})  # fmt: skip
    return rows


def memory_fallback(sizes: Sizes) -> Rows:
    """Run out of memory with many windows at once: the logits must be those of one window at a time."""
    if sizes.step.device != "cuda":
        return [{"what": "memory runs out", "result": "left out: for a GPU"}]
    torch.manual_seed(0)
    network = SegmentationNetwork(64, 8, out_channels=4, size="tiny", attention="full+sequence").cuda().eval()
    volume = torch.rand(1, 160, 160, 160)
    device = torch.device("cuda")

    def logits(window_batch: int) -> tuple[torch.Tensor, int]:
        inferer = WindowInferer([64] * 3, window_batch=window_batch)
        slabs = list(inferer.slabs(volume, network, device))
        return torch.cat([slab.logits.cpu() for slab in slabs], dim=1 + slabs[0].axis), inferer.window_batch

    total = torch.cuda.get_device_properties(0).total_memory
    with torch.inference_mode():
        expected, _ = logits(1)
        for allowed in (1024, 512, 256, 128):  # MiB; cuDNN's scratch space shrinks too, so that the first may be enough
            torch.cuda.empty_cache()
            used = torch.cuda.memory_reserved()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (used + allowed * MIB) / total))
            try:
                found, taken = logits(512)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            if taken < 512:
                break
        else:
            raise RuntimeError("512 windows at once fitted into 128 MiB: nothing was tried")
    difference = float((found - expected).abs().max() / expected.abs().max())
    if difference > 1e-3:
        raise RuntimeError(f"after the memory ran out the logits are {difference:.2g} apart")
    result = f"{allowed} MiB: {taken} windows at once instead of 512, {difference:.1e} apart"
    return [{"what": "memory runs out", "result": result}]


SECTIONS: dict[str, Callable[[Sizes], Rows]] = {
    "golden": golden_numbers,
    "numbers": mode_numbers,
    "step": step_speed,
    "memory": step_memory,
    "data": loader_speed,
    "finetuning": finetuning_speed,
    "inference": folder_inference,
    "fallback": memory_fallback,
}


def run_section(name: str, sizes: Sizes) -> dict[str, Any]:
    """Run and print a section: its seconds and rows, or why it failed."""
    start = time.monotonic()
    try:
        rows = SECTIONS[name](sizes)
    except Exception as error:  # noqa: BLE001 - the other sections are to run: it is told, and ends the command by 1
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        if sizes.step.device == "cuda":
            torch.cuda.empty_cache()
    seconds = time.monotonic() - start
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_table(f"{name}, {seconds:.0f} s", columns, [[row.get(c) for c in columns] for row in rows])
    return {"seconds": seconds, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=default_device(), choices=["cpu", "cuda"])
    parser.add_argument("--toy", action="store_true", help="sizes that run anywhere, for trying the check itself")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins later (default: %(default)s)")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine = machine_facts(options.device)
    print_machine(machine)
    sizes = Sizes.of(options.device, options.toy)
    began = time.monotonic()
    result: dict[str, Any] = {"benchmark": "gpu_check", "machine": machine, "toy": options.toy, "sections": {}}
    for name in options.sections:
        late = time.monotonic() - began > 60 * options.minutes
        result["sections"][name] = {"left_out": "the time was over"} if late else run_section(name, sizes)
        write_json(options.output, result)  # what was measured stays if the time ends
    for name, section in result["sections"].items():
        print(f"{name}: {section.get('failed') or section.get('left_out') or 'done'}")
    return int(any("failed" in section for section in result["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
