"""The prepared copy's format against those the field uses: bytes on disk and crops per second.

    pip install blosc2 zarr
    python -m benchmarks.copy_formats --output formats.json

The same generated int16 scans (see ``benchmarks.pretrain_data``) are kept as a memory-mapped ``.npy`` (this project's),
as blosc2 (zstd of level 8, in chunks and blocks of fixed size), and as zarr v3 with shards (zstd). A sample is a random
crop, read as it is stored, on one thread: ``warm`` by the processor's time, so that other programs count little;
``cold`` by the wall clock, which drops the files from the system's cache before each (Linux).
``scaled`` is what a loader does now: the crop from the ``.npy``, its percentiles and its scaling.
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
from digar.data.sequences.crops import random_window
from digar.volumes.intensities import scale_by_percentiles

from benchmarks.measure import MIB, machine_facts, print_machine, print_table, write_json
from benchmarks.pretrain_data import CT_SHAPE, forget, write_ct

CHUNK = 64  # edge in voxels of what blosc2 and zarr decompress as a whole; blosc2 divides it into blocks


def write_formats(array: np.ndarray, folder: Path) -> dict[str, Path]:
    """One scan ``(1, X, Y, Z)`` in every format: the file or folder of each."""
    import blosc2
    import zarr

    paths = {"npy": folder / "scan.npy", "blosc2": folder / "scan.b2nd", "zarr": folder / "scan.zarr"}
    np.save(paths["npy"], array)
    compression = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
    chunks, blocks = (1, CHUNK, CHUNK, CHUNK), (1, CHUNK // 2, CHUNK // 2, CHUNK // 2)
    blosc2.asarray(array, urlpath=str(paths["blosc2"]), chunks=chunks, blocks=blocks, cparams=compression)
    shards = (1, *(-(-n // CHUNK) * CHUNK for n in array.shape[1:]))
    zarr.create_array(paths["zarr"], data=array, chunks=chunks, shards=shards)
    return paths


def openers() -> dict[str, Callable[[Path], Any]]:
    """What opens a scan of each format, so that slicing reads a part; on one thread."""
    import blosc2
    import zarr

    blosc2.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    return {
        "npy": lambda path: np.load(path, mmap_mode="r"),
        "blosc2": lambda path: blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1}),
        "zarr": lambda path: zarr.open_array(path, mode="r"),
    }


def files_of(path: Path) -> list[Path]:
    """The files of a scan."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run and print the comparison; returns what is written to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=CT_SHAPE, help="of the scans, in voxels")
    parser.add_argument("--sample", type=int, default=128, help="edge of a crop in voxels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="crops of each scan (default: %(default)s)")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(arguments)
    machine = machine_facts("cpu")
    print_machine(machine)
    opened = openers()
    ways = [*opened, "npy, scaled"]
    seconds: dict[str, dict[str, list[float]]] = {
        state: {way: [] for way in ways} for state in ("warm", "cold")[: 1 + hasattr(os, "posix_fadvise")]
    }
    with tempfile.TemporaryDirectory() as temporary:
        written = []
        for index in range(options.scans):
            folder = Path(temporary) / str(index)
            folder.mkdir()
            write_ct(folder / "ct.nii.gz", tuple(options.shape), index)
            written.append(write_formats(np.asarray(nib.load(folder / "ct.nii.gz").dataobj, np.int16)[None], folder))
        size = {
            name: sum(file.stat().st_size for paths in written for file in files_of(paths[name])) / options.scans
            for name in opened
        }
        for state, times in seconds.items():
            clock = time.process_time if state == "warm" else time.perf_counter
            for turn in range(options.rounds * options.scans + options.scans):
                window = random_window(options.shape, [options.sample] * 3, np.random.RandomState(turn))
                crops = []
                for way in ways if turn % 2 else ways[::-1]:
                    name = way.partition(",")[0]
                    path = written[turn % options.scans][name]
                    if state == "cold":
                        forget(files_of(path))
                    start = clock()
                    crop = np.array(opened[name](path)[(slice(None), *window)])
                    if way != name:
                        scale_by_percentiles(crop)
                    if turn >= options.scans:
                        times[way].append(clock() - start)
                    crops.append(crop)
                if not all(np.array_equal(crop, crops[0]) for crop in crops):
                    raise ValueError("the formats give different crops: one of them is not read as it was written")
    rates = {state: {way: 1 / float(np.median(t)) for way, t in times.items()} for state, times in seconds.items()}
    rows = [[way, size[way.partition(",")[0]] / MIB, *(rate[way] for rate in rates.values())] for way in ways]
    print_table("Formats", ["format", "MiB per scan", *(f"crops per second, {state}" for state in rates)], rows)
    result = {"machine": machine, "options": vars(options), "bytes_per_scan": size, "crops_per_second": rates}
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
