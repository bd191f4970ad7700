"""Scans at the training spacing for pretraining: each kept at most once, compact and memory-mapped.

A copy holds the original intensities, resampled once, as 8- or 16-bit whole numbers ``q`` with a step and an offset per
channel: ``intensity = offset + step * q``. The step is a power of two, so that whole numbers that fit are kept exactly;
otherwise an intensity is rounded by at most half a step, 1/65,000 of the scan's range.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
from monai.data import MetaTensor
from monai.utils.enums import MetaKeys
from tqdm import tqdm

from digar.volumes.checks import WARNINGS, CheckedReader, TooLargeError
from digar.volumes.files import read_json, remove_leftovers, whole_file, write_rows, write_text
from digar.volumes.grids import WorkingGridd
from digar.volumes.header import Header, VolumeError, refuse_other_grid
from digar.volumes.intensities import percentiles
from digar.volumes.memory import available_memory
from digar.volumes.reading import volume_files
from digar.volumes.remote import fetched, is_remote, remote_state

FORMAT = 2  # part of a copy's name: a new format never reads old copies
OUTLIER_WIDTHS = 8  # intensities farther from the percentiles than so many of their distances are clipped

Case = dict[str, Any]
logger = logging.getLogger(__name__)


class Grid(NamedTuple):
    """Where a prepared scan lies: its shape (C, X, Y, Z), its affine and its file's, both voxel to RAS mm (4, 4)."""

    shape: tuple[int, ...]
    affine: np.ndarray
    source_affine: np.ndarray

    @classmethod
    def of(cls, scan: MetaTensor) -> "Grid":
        """That of a scan that :func:`resampled` gave."""
        return cls(tuple(scan.shape), scan.affine.numpy(), scan.meta[MetaKeys.ORIGINAL_AFFINE])


class VolumeStore:
    """Scans in RAS orientation at one spacing, read and checked as in every workflow.

    Args:
        spacing: mm per axis.
        cache_dir: where the copies go; several runs and processes may share it. None keeps no copy: every
            :meth:`open` reads and resamples the file.
        in_channels: the network's. A scan must have as many; for 1, any number (a sample takes one of them).
        nonfinite_share: of NaN and infinite voxels that are replaced, see :class:`digar.volumes.checks.CheckedReader`.
    """

    UNDECISIVE = ("cache_dir", "grids", "copies", "dtypes")  # of what is read, see digar.networks.description

    def __init__(
        self,
        spacing: Sequence[float],
        cache_dir: str | Path | None,
        in_channels: int = 1,
        nonfinite_share: float = 0.01,
    ) -> None:
        self.spacing = tuple(float(s) for s in spacing)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.in_channels = in_channels
        self.reader = CheckedReader(None, spacing, nonfinite_share=nonfinite_share)
        self.grids: dict[str, Grid] = {}
        self.copies: dict[str, Path] = {}
        self.dtypes: dict[str, np.dtype] = {}

    def __contains__(self, path: str) -> bool:
        return path in self.grids

    def prepare(self, path: str, memory_left: float = math.inf) -> None:
        """Read and check a scan, or find its copy; write the copy if there is none yet. Oddities are logged.

        Args:
            path: of the scan.
            memory_left: bytes that reading it may take at most.

        Raises:
            VolumeError: the scan cannot be used.
            OSError: the copy cannot be written.
        """
        if self.cache_dir is None:
            if is_remote(path):
                raise VolumeError(path, "is not on this machine: name a --cache_dir for its copy")
            scan = resampled(path, self.reader, memory_left)
            grid, warnings = Grid.of(scan), scan.meta[WARNINGS]
        else:
            copy = self.cache_dir / copy_name(path, self.spacing, self.reader.nonfinite_share)
            found = find_copy(copy)
            if found is None:
                found = self._write(copy, path, memory_left)
            self.copies[path], (grid, self.dtypes[path], warnings) = copy, found
        if self.in_channels not in (1, grid.shape[0]):
            raise VolumeError(path, f"has {grid.shape[0]} channels, the network takes {self.in_channels}")
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        self.grids[path] = grid

    def _write(self, copy: Path, path: str, memory_left: float) -> "Found":
        with fetched(path) if is_remote(path) else nullcontext(path) as file:
            scan = resampled(file, self.reader, memory_left)
        try:
            return write_copy(copy, path, scan)
        except OSError as error:
            raise OSError(
                f"the copy of {path} cannot be written to {self.cache_dir}: {error}; free some space, pass "
                "another --cache_dir, or --cache_dir '$None' for none"
            ) from error

    def open(self, path: str) -> np.ndarray:
        """A prepared scan, ``(C, X, Y, Z)``: its memory-mapped copy, so that slicing reads only what it needs.

        The numbers are the intensities up to step and offset, which scaling by percentiles undoes; without a cache they
        are the intensities themselves.

        Raises:
            VolumeError: the file, or its copy, is no longer there.
        """
        if self.cache_dir is None:
            return resampled(path, self.reader).numpy()
        copy, dtype, shape = self.copies[path], self.dtypes[path], self.grids[path].shape
        try:
            with copy.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            begin = len(mapped) - math.prod(shape) * dtype.itemsize  # behind the header, which numpy.load would parse
            return np.frombuffer(mapped, dtype, offset=begin).reshape(shape)
        except (OSError, ValueError) as error:
            raise VolumeError(
                path, f"its copy {copy} cannot be read ({error}): start again to write it anew"
            ) from error

    def voxel(self, path: str, source_voxel: Sequence[float]) -> np.ndarray:
        """A voxel position of the file, as a position in the prepared scan; both ``(3,)``."""
        grid = self.grids[path]
        return (np.linalg.inv(grid.affine) @ grid.source_affine @ [*source_voxel, 1.0])[:3]


def resampled(path: str, reader: CheckedReader, memory_left: float = math.inf) -> MetaTensor:
    """A file in RAS orientation at the reader's spacing, ``(C, X, Y, Z)`` float32 and finite.

    Raises:
        VolumeError: see :class:`digar.volumes.checks.CheckedReader`.
    """
    volume, meta = reader.read(path, memory_left)
    return WorkingGridd("image", reader.spacing).to_working_grid(MetaTensor(volume, meta=meta))


def compact(channel: np.ndarray) -> tuple[np.ndarray, float, float]:
    """A channel as whole numbers with a step and an offset: ``intensity = offset + step * q``.

    Whole numbers within 256 of each other become uint8, all else int16. Outliers more than 8 times the distance of the
    1 and 99.9 percentiles beyond these are clipped there, so that one hot voxel cannot coarsen all others.
    """
    low, high = float(channel.min()), float(channel.max())
    if high - low <= 255 and np.array_equal(channel, np.rint(channel)):
        return (channel - np.float32(low)).astype(np.uint8), 1.0, low
    lower, upper = percentiles(channel)
    if upper > lower:
        margin = OUTLIER_WIDTHS * (upper - lower)
        low, high = max(low, lower - margin), min(high, upper + margin)
    step = 2.0 ** math.ceil(math.log2((high - low) / 65534)) if high > low else 1.0
    offset = (math.floor(low / step) + 32768) * step
    quantised = np.rint((channel - np.float32(offset)) / np.float32(step))
    return quantised.clip(-32768, 32767).astype(np.int16), step, offset


class Found(NamedTuple):
    """What is known of a copy: its grid, its type, what was odd about the scan."""

    grid: Grid
    dtype: np.dtype
    warnings: list[str]


def write_copy(copy: Path, path: str, scan: MetaTensor) -> Found:
    """Write a scan's compact copy and then what is to be known of it, each whole or not at all.

    Copies of earlier states of the file are removed.
    """
    channels, steps, offsets = zip(*(compact(channel) for channel in scan.numpy()), strict=True)
    array = np.stack(channels)  # int16 where one channel needs it
    grid = Grid.of(scan)
    facts = {
        "source": str(path),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "steps": steps,
        "offsets": offsets,
        "affine": grid.affine.tolist(),
        "source_affine": grid.source_affine.tolist(),
        "warnings": scan.meta[WARNINGS],
    }
    with whole_file(copy) as temporary:
        np.save(temporary, array)
    facts = json.loads(json.dumps(facts))  # as they will be read
    _write_facts(copy, facts, zlib.crc32(array.data))
    prefix, _, state = copy.stem.rpartition("_")
    for former in copy.parent.glob(f"{prefix}_*"):
        if former.stem != f"{prefix}_{state}":
            former.unlink(missing_ok=True)
    return _found(facts)


def find_copy(copy: Path) -> Found | None:
    """What is known of a copy; None where it is missing, not whole, or not what was written.

    A copy that changed since its checksum was last seen to be right, by its size and times, is read to its end.
    """
    try:
        known = read_json(copy.with_suffix(".json"), dict)
        facts, array = known["facts"], np.load(copy, mmap_mode="r", allow_pickle=False)
        if list(array.shape) != facts["shape"] or str(array.dtype) != facts["dtype"]:
            return None
        if known["checked"] != _state(copy):
            if known["checksum"] != zlib.crc32(array.data):
                return None
            with suppress(OSError):  # the cache may be another user's
                _write_facts(copy, facts, known["checksum"])
        return _found(facts)
    except (OSError, EOFError, ValueError, LookupError, TypeError):
        return None


def _found(facts: dict[str, Any]) -> Found:
    affine, source_affine = (np.array(facts[name], np.float64).reshape(4, 4) for name in ("affine", "source_affine"))
    return Found(Grid(tuple(facts["shape"]), affine, source_affine), np.dtype(facts["dtype"]), list(facts["warnings"]))


def _write_facts(copy: Path, facts: dict[str, Any], checksum: int) -> None:
    known = {"facts": facts, "checksum": checksum, "checked": _state(copy)}
    write_text(copy.with_suffix(".json"), json.dumps(known, indent=1))


def _state(copy: Path) -> list[int]:
    """What no program can change without leaving a trace: size, times of content and of the file's entry."""
    stat = copy.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def copy_name(path: str, spacing: Sequence[float], nonfinite_share: float) -> Path:
    """Where a scan's copy lies in the cache: named by file path and settings, then by the files' sizes and times."""
    place = path if is_remote(path) else os.path.abspath(path)
    state = remote_state(path) if is_remote(path) else _states(path)
    which, when = (
        hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        for key in ((place, tuple(spacing), nonfinite_share, FORMAT), state)
    )
    return Path(which[:2]) / f"{which}_{when}.npy"


def _states(path: str) -> list[tuple[str, int, int]]:
    try:
        return [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in volume_files(path)]
    except OSError as error:
        raise VolumeError(path, f"cannot be read ({error})") from error


def prepare_volumes(
    cases: Sequence[Case],
    spacing: Sequence[float],
    cache_dir: str | None,
    in_channels: int,
    report_file: str,
    max_unreadable_share: float,
    num_workers: int,
    nonfinite_share: float = 0.01,
    left_out: Sequence[tuple[str, str]] = (),
) -> VolumeStore:
    """One pass over all scans of the cases before a run: each is read, checked and, with a cache, copied once.

    Scans that cannot be used are rows of the report and left out of the store, and thereby of the run. Several
    processes divide the work: each begins with its own share, then takes over what the others have not finished, so
    that it serves a shared cache and one per machine alike.

    Args:
        cases: see :mod:`digar.data.sources`; a path that occurs twice is prepared once.
        spacing, cache_dir, in_channels, nonfinite_share: see :class:`VolumeStore`.
        report_file: a CSV of path and reason, written in any case.
        max_unreadable_share: the run stops where more than this share of the scans cannot be used.
        num_workers: threads.
        left_out: further rows of the report: what was left out before, and why.

    Raises:
        ValueError: too large a share cannot be used; names the report and the first reason.
    """
    workers = max(num_workers, 1)
    store = VolumeStore(spacing, cache_dir, in_channels, nonfinite_share)
    paths = list(dict.fromkeys(path for case in cases for path in case_files(case)))
    rank, processes = idist.get_rank(), idist.get_world_size()
    order = [paths[i] for first in range(processes) for i in range((rank + first) % processes, len(paths), processes)]
    for folder in sorted(store.cache_dir.glob("??")) if store.cache_dir else ():
        remove_leftovers(folder)

    def attempt(path: str, at_once: int = workers) -> VolumeError | None:
        try:
            store.prepare(path, available_memory() / at_once)
        except VolumeError as error:
            return error
        return None

    with ThreadPool(workers) as pool:
        bar = tqdm(pool.imap(attempt, order), total=len(order), desc="preparing scans", unit="scan", disable=rank > 0)
        errors = [error for error in bar if error is not None]
    retried = [
        attempt(e.path, at_once=1) if isinstance(e, TooLargeError) else e for e in errors
    ]  # alone it may find room
    problems = {error.path: error.reason for error in retried if error is not None}
    if processes > 1:  # what one process could not read, all leave out
        problems = {path: reason for part in idist.all_gather(problems) for path, reason in part.items()}
    for path in problems:
        store.grids.pop(path, None)
    rows = [(path, problems[path]) for path in paths if path in problems]
    rows += [(case_files(case)[0], reason) for case in cases if (reason := grids_differ(case, store))]
    if rank == 0:
        write_rows(report_file, [("path", "reason"), *rows, *left_out])
    if rows:
        logger.warning(f"{len(rows)} of {len(paths)} scans are left out, see {report_file}")
    if len(problems) > max_unreadable_share * len(paths):
        path, reason = rows[0]
        raise ValueError(
            f"{len(problems)} of {len(paths)} scans cannot be used, a larger share than max_unreadable_share "
            f"{max_unreadable_share:g}: {report_file} names them. The first: {path}: {reason}"
        )
    return store


def case_files(case: Case) -> list[str]:
    """The files of a case, one or several."""
    return list(case["image"]) if isinstance(case["image"], (list, tuple)) else [case["image"]]


def grids_differ(case: Case, store: VolumeStore) -> str | None:
    """Why the files of a case, all prepared, do not lie on one grid, or None."""
    files = case_files(case)
    if len(files) == 1 or not all(path in store for path in files):
        return None
    first, *others = (_header(path, store.grids[path]) for path in files)
    for other in others:
        try:
            refuse_other_grid(other, first, "the first of its study,", "register and resample it to that grid")
        except VolumeError as error:
            return f"its study is left out: {error}"
    return None


def _header(path: str, grid: Grid) -> Header:
    channels, x, y, z = grid.shape
    return Header(path, (x, y, z), channels, grid.affine, np.dtype(np.float32))
