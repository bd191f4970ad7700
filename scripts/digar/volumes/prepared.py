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
import uuid
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch.distributed as dist
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation, Spacing
from tqdm import tqdm

from digar.volumes.files import write_rows
from digar.volumes.intensities import percentiles
from digar.volumes.reading import VolumeError, read_volume, volume_files

FORMAT = 1  # part of a copy's name: a new format never reads old copies
OUTLIER_WIDTHS = 8  # intensities farther from the percentiles than so many of their distances are clipped
MOST_VOXELS = 2e9  # of a scan at the spacing; a header that asks for more is wrong
SAME_SPACING = 1e-3  # relative; such a scan is not resampled
GRID_TOLERANCE_MM = 0.1  # how far the corners of one study's modalities may lie apart

Case = dict[str, Any]
logger = logging.getLogger(__name__)


class Grid(NamedTuple):
    """Where a prepared scan lies: its shape (C, X, Y, Z), its affine and its file's, both voxel to RAS mm (4, 4)."""

    shape: tuple[int, ...]
    affine: np.ndarray
    source_affine: np.ndarray


class VolumeStore:
    """Scans in RAS orientation at one spacing.

    Args:
        spacing: mm per axis.
        cache_dir: where the copies go; several runs and processes may share it. None keeps no copy: every
            :meth:`open` reads and resamples the file.
        in_channels: the network's. A scan must have as many; for 1, any number (a sample takes one of them).
    """

    def __init__(self, spacing: Sequence[float], cache_dir: str | Path | None, in_channels: int = 1) -> None:
        self.spacing = tuple(float(s) for s in spacing)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.in_channels = in_channels
        self.grids: dict[str, Grid] = {}
        self.copies: dict[str, Path] = {}
        self.dtypes: dict[str, np.dtype] = {}

    def __contains__(self, path: str) -> bool:
        return path in self.grids

    def prepare(self, path: str) -> None:
        """Read and check a scan, or find its copy; write the copy where there is none.

        Raises:
            VolumeError: the scan cannot be used.
            OSError: the copy cannot be written.
        """
        if self.cache_dir is None:
            volume, source_affine = resampled(path, self.spacing)
            grid = Grid(tuple(volume.shape), _array(volume.affine), source_affine)
        else:
            copy = self.cache_dir / copy_name(path, self.spacing)
            about = _about(copy)
            if about is None:
                volume, source_affine = resampled(path, self.spacing)
                try:
                    about = write_copy(copy, path, volume, source_affine)
                except OSError as error:
                    raise OSError(
                        f"the copy of {path} cannot be written to {self.cache_dir}: {error}; free some space, pass "
                        "another --cache_dir, or --cache_dir '$None' for none"
                    ) from error
            self.copies[path], self.dtypes[path] = copy, np.dtype(about["dtype"])
            grid = Grid(tuple(about["shape"]), np.array(about["affine"]), np.array(about["source_affine"]))
        if self.in_channels not in (1, grid.shape[0]):
            raise VolumeError(path, f"has {grid.shape[0]} channels, the network takes {self.in_channels}")
        self.grids[path] = grid

    def open(self, path: str) -> np.ndarray:
        """A prepared scan, ``(C, X, Y, Z)``: its memory-mapped copy, of which slicing reads only a part.

        The numbers are the intensities up to step and offset, which scaling by percentiles undoes; without a cache they
        are the intensities themselves.

        Raises:
            VolumeError: the file, or its copy, is no longer there.
        """
        if self.cache_dir is None:
            return resampled(path, self.spacing)[0].numpy()
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


def resampled(path: str, spacing: Sequence[float]) -> tuple[MetaTensor, np.ndarray]:
    """A file in RAS orientation at the spacing, ``(C, X, Y, Z)`` float32 and finite, and the file's affine.

    Resampling is linear. NaN and infinite voxels take the scan's smallest finite intensity.

    Raises:
        VolumeError: it cannot be read, is constant, or would be absurdly large at the spacing.
    """
    volume = read_volume(path)
    source_affine = _array(volume.affine)
    voxels = volume[0].numel() * abs(np.linalg.det(source_affine[:3, :3])) / math.prod(spacing)
    if voxels > MOST_VOXELS:
        raise VolumeError(path, f"would have {voxels:.1g} voxels at the spacing: correct the spacing in its header")
    array = volume.numpy()
    finite = np.isfinite(array)
    if not finite.all():
        if not finite.any():
            raise VolumeError(path, "holds no finite intensity")
        array[~finite] = array[finite].min()
    if array.min() == array.max():
        raise VolumeError(path, f"is constant ({array.flat[0]:g} everywhere): there is nothing to learn from it")
    turned = cast(MetaTensor, Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(volume))
    if not np.allclose(affine_to_spacing(turned.affine), spacing, rtol=SAME_SPACING):
        turned = cast(MetaTensor, Spacing(pixdim=spacing, mode="bilinear")(turned))
    return turned, source_affine


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


def write_copy(copy: Path, path: str, volume: MetaTensor, source_affine: np.ndarray) -> dict[str, Any]:
    """Write a scan's compact copy and, first, what is to be known of it; both whole or not at all.

    Copies of earlier states of the file are removed.

    Returns:
        The content of the JSON file beside the copy.
    """
    channels, steps, offsets = zip(*(compact(channel) for channel in volume.numpy()), strict=True)
    array = np.stack(channels)  # int16 where one channel needs it
    about = {
        "source": str(path),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "steps": steps,
        "offsets": offsets,
        "affine": _array(volume.affine).tolist(),
        "source_affine": source_affine.tolist(),
    }
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(about, indent=1))
        temporary.replace(copy.with_suffix(".json"))
        with temporary.open("wb") as file:
            np.save(file, array)
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
    prefix, _, state = copy.stem.rpartition("_")
    for former in copy.parent.glob(f"{prefix}_*"):
        if former.stem != f"{prefix}_{state}":
            former.unlink(missing_ok=True)
    return about


def copy_name(path: str, spacing: Sequence[float]) -> Path:
    """Where a scan's copy lies in the cache: named by file path and spacing, then by the file's size and time."""
    try:
        state = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in volume_files(path)]
    except OSError as error:
        raise VolumeError(path, f"cannot be read ({error})") from error
    which, when = (
        hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        for key in ((os.path.abspath(path), tuple(spacing), FORMAT), state)
    )
    return Path(which[:2]) / f"{which}_{when}.npy"


def prepare_volumes(
    cases: Sequence[Case],
    spacing: Sequence[float],
    cache_dir: str | None,
    in_channels: int,
    report_file: str,
    max_unreadable_share: float,
    num_workers: int,
    left_out: Sequence[tuple[str, str]] = (),
) -> VolumeStore:
    """One pass over all scans of the cases before a run: each is read, checked and, with a cache, copied once.

    Scans that cannot be used are rows of the report and left out of the store, and thereby of the run. Several
    processes divide the work: each begins with its own share, then takes over what the others have not finished, so
    that it serves a shared cache and one per machine alike.

    Args:
        cases: see :mod:`digar.data.sources`; a path that occurs twice is prepared once.
        spacing, cache_dir, in_channels: see :class:`VolumeStore`.
        report_file: a CSV of path and reason, written in any case.
        max_unreadable_share: the run stops where more than this share of the scans cannot be used.
        num_workers: threads.
        left_out: further rows of the report: what was left out before, and why.

    Raises:
        ValueError: too large a share cannot be used; names the report and the first reason.
    """
    store = VolumeStore(spacing, cache_dir, in_channels)
    paths = list(dict.fromkeys(path for case in cases for path in case_files(case)))
    rank, processes = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    order = [paths[i] for first in range(processes) for i in range((rank + first) % processes, len(paths), processes)]

    def attempt(path: str) -> VolumeError | None:
        try:
            store.prepare(path)
        except VolumeError as error:
            return error
        return None

    with ThreadPool(max(num_workers, 1)) as pool:
        bar = tqdm(pool.imap(attempt, order), total=len(order), desc="preparing scans", unit="scan", disable=rank > 0)
        problems = {error.path: error.reason for error in bar if error is not None}
    if processes > 1:  # what one process could not read, all leave out
        gathered: list[dict[str, str]] = [{}] * processes
        dist.all_gather_object(gathered, problems)
        problems = {path: reason for part in gathered for path, reason in part.items()}
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
    first = store.grids[files[0]]
    corner = np.array([*first.shape[1:], 1])
    for path in files[1:]:
        grid = store.grids[path]
        apart = max(np.abs((grid.affine - first.affine) @ point)[:3].max() for point in (corner, [0, 0, 0, 1]))
        if grid.shape != first.shape or apart > GRID_TOLERANCE_MM:
            return f"its study is left out: {path} lies on another grid; register and resample it to this scan"
    return None


def _about(copy: Path) -> dict[str, Any] | None:
    """What is known of a copy; None where it is missing or not whole."""
    try:
        about = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
        array = np.load(copy, mmap_mode="r", allow_pickle=False)  # refuses a file shorter than its header says
    except (OSError, ValueError):
        return None
    return about if list(array.shape) == about["shape"] and str(array.dtype) == about["dtype"] else None


def _array(affine: Any) -> np.ndarray:
    return np.asarray(affine, dtype=np.float64)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
