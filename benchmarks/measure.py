"""What the benchmarks share: timing in turns, peak memory in a child process, tables, and the machine's facts.

For Linux and macOS, on a CPU or CUDA.
"""

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import monai
import torch
from torch import nn

MIB = 2**20
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CPU_BF16_FLAGS = ("amx_bf16", "avx512_bf16")  # without one of them bf16 is slower than float32 on a CPU


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds_in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call in every round; a round runs each call once, so that a drifting load meets all alike.

    Args:
        calls: what to time, by name.
        rounds: timed runs of each.
        device: ``cpu`` or ``cuda``; CUDA work is waited for before the clock is read.
        warm_up: runs of each before the first timed round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(build: Callable[..., Callable[[], object]], arguments: Sequence[Any], device: str, calls: int) -> float:
    """Memory in MiB that a call takes at its peak, on top of what was held before the first call.

    ``build(*arguments)`` runs in a child process of its own and returns the call. On a CPU the figure is the growth of
    the child's largest resident size, on CUDA that of the largest allocation.

    Args:
        build: a function at the top level of its module.
        arguments: picklable.
        device: ``cpu`` or ``cuda``.
        calls: how often to call: 2 where the first call leaves something behind, as an optimizer does.

    Raises:
        BrokenProcessPool: the child was killed, most likely for want of memory.
    """
    # A forked child of a small server, not of this process: a child keeps the largest resident size of the process
    # that it was made from. The server imports the libraries once for all children.
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload(["benchmarks.measure", "digar.networks", "monai.networks.nets"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        work = pool.submit(_peak_memory_here, build, arguments, device, calls, torch.get_num_threads())
        return work.result()


def _peak_memory_here(
    build: Callable[..., Callable[[], object]], arguments: Sequence[Any], device: str, calls: int, threads: int
) -> float:
    torch.set_num_threads(threads)
    call = build(*arguments)
    before = held_memory(device)
    for _ in range(calls):
        call()
    _wait(device)
    peak = torch.cuda.max_memory_allocated() / MIB if device == "cuda" else held_memory(device)
    return peak - before


def held_memory(device: str) -> float:
    """Memory held now on CUDA, or the largest resident size so far, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def kept_for_backward(network: nn.Module, forward: Callable[[], object]) -> float:
    """What autograd keeps of a forward pass for the backward pass, in MiB, the network's own weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address serves twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values()) / MIB


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def available_memory(device: str) -> float:
    """Memory that can still be taken, in MiB."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / MIB
    information = Path("/proc/meminfo")
    if information.exists():
        fields = dict(line.split(":", 1) for line in information.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB / 2


def machine_facts(device: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers: processor, cores, threads, load, versions; no names, no paths."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": fields.get("model name", platform.machine()).strip(),
        "cpu_bf16": next((flag for flag in CPU_BF16_FLAGS if flag in flags), None),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "available_memory_mib": round(available_memory(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def print_machine(facts: dict[str, Any]) -> None:
    """The machine in one line, with a word where something else runs on it."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if facts["load_average"] > 0.5:
        print("Something else is running: the seconds below are too long, and ratios less sure.")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table with aligned columns; numbers to three digits, None as an empty cell."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n{title}\n")
    print("\n".join(lines), flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write_json(path: str | None, content: dict[str, Any]) -> None:
    """Write the results, when a path is given."""
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
        print(f"\nwritten to {Path(path).name}")
