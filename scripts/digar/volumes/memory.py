"""How much memory can still be taken, and how much a volume will need."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

GIB = 2**30
FLOAT32 = 4


def available_memory() -> float:
    """Bytes of main memory that this process can still take: the least of what the system, its cgroup and its own
    address-space limit leave. Infinite where none of them can be asked (Windows).
    """
    return min(_system(), _cgroup(), _address_space())


def _system() -> float:
    information = Path("/proc/meminfo")
    if information.is_file():
        fields = dict(line.split(":", 1) for line in information.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024.0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2.0  # macOS does not tell what is free
    return math.inf


def _cgroup() -> float:
    """What the process' control group leaves, in either version of the interface."""
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, usage = Path(limit_file), Path(usage_file)
        if limit.is_file() and usage.is_file():
            text = limit.read_text().strip()
            return math.inf if text == "max" else float(text) - float(usage.read_text())
    return math.inf


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
    shape: Sequence[int],
    channels: int,
    voxel_bytes: int,
    working_shape: Sequence[int],
    num_classes: int,
    roi_size: Sequence[int],
) -> float:
    """Bytes that a volume takes at the peak of its way, an upper estimate.

    Args:
        shape: as stored, in voxels.
        channels: of the image.
        voxel_bytes: of a stored voxel.
        working_shape: at the network's spacing.
        num_classes: of the network.
        roi_size: of its window.
    """
    stored, working = math.prod(shape) * channels, math.prod(working_shape) * channels
    reading = stored * (voxel_bytes + 2 * FLOAT32)  # as stored, as float32, turned
    preparing = stored * FLOAT32 + working * 4 * FLOAT32  # interpolated axis by axis, scaled
    longest = max(range(3), key=lambda axis: working_shape[axis])
    plane = math.prod(max(n, roi_size[axis]) for axis, n in enumerate(working_shape) if axis != longest)
    slab = plane * roi_size[longest] * num_classes * FLOAT32
    ending = working * 2 * FLOAT32 + 5 * slab + 3 * math.prod(shape)  # sums, slabs on their way, mask
    return max(reading, preparing, ending)
