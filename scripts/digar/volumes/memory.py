"""How much memory can still be taken, and how much a volume will need."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from digar.volumes.grids import CanonicalAxes
from digar.volumes.header import Header

GIB = 2**30
FLOAT32 = 4
BUFFERS = 2**27  # bytes: of threads and files, and what their allocators keep of blocks that are free again
PERCENTILES = 3  # bytes per voxel of the comparisons that find them
SLABS = 6  # of logits at once: waiting, being made, joined, as probabilities
INTERPOLATED = 6  # volumes of float32 at once, of the part of a mask that is made from a slab
FINISHING = 12  # bytes per voxel of a finished mask: turned, its components numbered, counted, written
ROOT = Path("/")  # of the system's files that tell


def available_memory() -> float:
    """Bytes of main memory that this process can still take: the least of what the system, its cgroup and its own
    address-space limit leave. Infinite where none of them can be asked (Windows).
    """
    return min(_system(), _cgroup(), _address_space())


def _system() -> float:
    information = ROOT / "proc/meminfo"
    if information.is_file():
        fields = dict(line.split(":", 1) for line in information.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024.0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2.0  # macOS does not tell what is free
    return math.inf


def _cgroup() -> float:
    """What the control groups of this process leave, in either version of the interface: the least on the way up from
    its own group. Cached files count as free: they make room.
    """
    membership = ROOT / "proc/self/cgroup"
    left = math.inf
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = CGROUP_1 if controllers else CGROUP_2
        top = ROOT / version.top
        folder = top / group.lstrip("/")
        for place in (folder, *folder.parents):
            left = min(left, _group_leaves(place, version))
            if place == top:  # in a container the group's own path may lie outside what is mounted: then this is it
                break
    return left


class _Version(NamedTuple):
    """Where a version of the interface has its groups, and how it calls limit, usage and the cached files in it."""

    top: str
    limit: str
    usage: str
    files: tuple[str, str]


CGROUP_1 = _Version(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)  # fmt: skip
CGROUP_2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))


def _group_leaves(folder: Path, version: _Version) -> float:
    try:
        limit = (folder / version.limit).read_text().strip()
        if limit == "max":
            return math.inf
        usage = float((folder / version.usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no such group here, or no limit
        return math.inf
    return float(limit) - usage + sum(float(statistics.get(name, 0)) for name in version.files)


def _address_space() -> float:
    """What ``ulimit -v`` leaves."""
    if not Path("/proc/self/statm").is_file():
        return math.inf
    import resource  # Unix alone has it

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return limit - used


def needed_memory(
    header: Header,
    channels: int,
    files: int,
    working: Sequence[int],
    num_classes: int,
    roi_size: Sequence[int],
) -> float:
    """Bytes that a volume takes at the peak of its way from the file to its mask, an upper estimate.

    What the network takes for a window and ``BUFFERS`` come on top; they do not depend on the volume.

    Args:
        header: of the (first) file.
        channels: of all files together.
        files: how many hold them.
        working: shape at the network's spacing, in RAS order.
        num_classes: of the network.
        roi_size: of its window.
    """
    stored, kept = math.prod(header.shape), math.prod(working)
    reading = stored * channels * (header.reading_bytes + (FLOAT32 if files > 1 else 0))
    scaling = kept * (channels * 2 * FLOAT32 + PERCENTILES)
    return max(
        reading,
        channels * FLOAT32 * (stored + _resampling(header, working)),
        scaling,
        kept * channels * FLOAT32 + _streaming(header, working, num_classes, roi_size),
        kept * channels * FLOAT32 + stored * FINISHING,
    )


def _resampling(header: Header, working: Sequence[int]) -> int:
    """Most voxels at once of a volume that is turned, then resampled along one axis after another."""
    size = [header.shape[axis] for axis in CanonicalAxes.of(header.affine).order]
    most = before = math.prod(size)
    for axis in range(3):
        if size[axis] != working[axis]:
            size[axis] = working[axis]
            most = max(most, before + 2 * math.prod(size))
            before = math.prod(size)
    return most


def _streaming(header: Header, working: Sequence[int], num_classes: int, roi_size: Sequence[int]) -> float:
    """Sums of windows, slabs of logits on their way, and their interpolation class by class into the mask."""
    padded = [max(n, roi) for n, roi in zip(working, roi_size, strict=True)]
    longest = max(range(3), key=lambda axis: padded[axis])
    slab = math.prod(padded) // padded[longest] * roi_size[longest]
    share = min(roi_size[longest] / working[longest], 1)  # of the volume that is interpolated at once
    padding = math.prod(padded) if padded != list(working) else 0
    sums, slabs = 2 * slab * (num_classes + 1), SLABS * slab * num_classes
    return FLOAT32 * (padding + sums + slabs + math.prod(header.shape) * share * INTERPOLATED) + 2 * math.prod(
        header.shape
    )
