"""What threads cost on a machine that others use: a training step with one thread a core, waiting in several ways.

    PYTHONPATH=scripts python -m benchmarks.busy_threads

PyTorch's OpenMP threads (GNU's, on Linux) meet after every operation, and wait for each other by spinning: while one of
them has no core, the others burn theirs. ``GOMP_SPINCOUNT`` says for how long they spin before they sleep. It is read
when the library is loaded, so each way is timed in a process of its own.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

WAYS = {  # threads, GOMP_SPINCOUNT
    "one thread": (1, None),
    "a thread a core": (os.cpu_count() or 1, None),
    "a thread a core, SPINCOUNT 1000": (os.cpu_count() or 1, "1000"),
    "a thread a core, SPINCOUNT 0": (os.cpu_count() or 1, "0"),
}


def step_seconds(threads: int, steps: int) -> float:
    """The median time of a small segmentation network's training step, the first left out."""
    import torch
    from digar.networks import SegmentationNetwork
    from digar.networks.precision import PrecisionInferer, best_precision

    torch.set_num_threads(threads)
    network = SegmentationNetwork([48, 48, 48], 8, 1, 3, size="tiny")
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(2, 1, 48, 48, 48)
    inferer = PrecisionInferer(best_precision("cpu"))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = inferer(images, network).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _spin() -> None:
    os.setsid()  # as another user's program: the system shares cores among sessions first
    while True:
        pass


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    processes = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def timed(threads: int, spin_count: str | None, steps: int) -> float:
    """The step's time in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.busy_threads", "--threads", str(threads), "--steps", str(steps)]
    environment = kept if spin_count is None else {**kept, "GOMP_SPINCOUNT": spin_count}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time a training step beside other work, by the way threads wait.")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--others", type=int, default=1, help="busy processes beside (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="only print the seconds of a step here, with as many threads")
    options = parser.parse_args(arguments)
    if options.threads:
        print(step_seconds(options.threads, options.steps))
        return
    print(f"| seconds a step | machine to itself | beside {options.others} busy |\n|---|---|---|")
    for name, way in WAYS.items():
        alone = timed(*way, options.steps)
        with others(options.others):
            beside = timed(*way, options.steps)
        print(f"| {name} | {alone:.2f} | {beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
