"""The network over a volume, window by window, in slabs: a slab is written and freed once no further window reaches it.

The sums are those of MONAI's ``SlidingWindowInferer`` in mode ``gaussian``; what differs is that logits of all classes
never exist for the whole volume, that windows without any foreground are left out, and what happens when a GPU's memory
runs out: fewer windows at once, then sums on the CPU.

On a CPU as many windows are computed at the same time as PyTorch has threads, each by a thread of its own: that takes
less time than all threads together on one window after the other, and more than one volume can share them.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from torch import Tensor

from digar.networks.precision import PRECISIONS

logger = logging.getLogger(__name__)

POOL = 4  # voxels: foreground is sought in means over cubes of this side, so that noise in air does not count
NOTHING = -100.0  # logit of every class but the background where no window was: its probability is 0

Network = Callable[[Tensor], Tensor]
Window = tuple[int, int, int]  # first voxel


@dataclass(frozen=True)
class Slab:
    """Logits ``(classes, X, Y, Z)`` of the slices from ``start`` on along ``axis`` (0, 1 or 2)."""

    axis: int
    start: int
    logits: Tensor


class WindowInferer(Inferer):
    """Sliding windows, blended with Gaussian weights.

    Args:
        roi_size: the network's window in voxels.
        window_batch: windows that the network takes in one call. On a CPU one is fastest: more do not fit its caches.
        overlap: of neighbouring windows, a share of their size in [0, 1).
        precision: ``bfloat16`` or ``float32``, see :mod:`digar.networks.precision`.
        foreground: windows whose every ``POOL``-voxel cube has a mean at or below this are background unseen; None
            looks at every window.
        mirroring: axes (0, 1, 2) along which each window is also seen mirrored; logits are averaged over all
            combinations, so three axes take eight times as long. A network that never saw mirror images in training
            gets worse by it.

    Raises:
        ValueError: an invalid overlap, precision or axis.
    """

    UNDECISIVE = ("window_batch", "threads", "pool")  # of the result, see digar.networks.description

    def __init__(
        self,
        roi_size: Sequence[int],
        window_batch: int = 1,
        overlap: float = 0.25,
        precision: str = "float32",
        foreground: float | None = None,
        mirroring: Sequence[int] = (),
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} must be at least 0 and below 1")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} must be one of {', '.join(PRECISIONS)}")
        if len(set(mirroring)) < len(mirroring) or not set(mirroring) <= {0, 1, 2}:
            raise ValueError(f"mirroring {list(mirroring)} must be different ones of the axes 0, 1 and 2")
        self.roi_size = tuple(int(n) for n in roi_size)
        self.window_batch = window_batch
        self.overlap = overlap
        self.dtype = PRECISIONS[precision]
        self.foreground = foreground
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(self.threads, "windows", initializer=torch.set_num_threads, initargs=(1,))
        self.mirroring = tuple(sorted(mirroring))
        self.flips = [
            axes for count in range(len(mirroring) + 1) for axes in itertools.combinations(self.mirroring, count)
        ]

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(B, classes, X, Y, Z)`` of volumes ``(B, C, X, Y, Z)``, on their device."""
        volumes = []
        for image in inputs:
            slabs = list(self.slabs(image, network, inputs.device))
            volumes.append(torch.cat([slab.logits.to(inputs.device) for slab in slabs], dim=1 + slabs[0].axis))
        return torch.stack(volumes)

    def slabs(self, image: Tensor, network: Network, device: torch.device) -> Iterator[Slab]:
        """The logits of a volume ``(C, X, Y, Z)`` slab by slab, in order, along its longest axis.

        Args:
            image: on any device.
            network: windows ``(b, C, *roi_size)`` to logits ``(b, classes, *roi_size)``.
            device: where the network is.

        Raises:
            torch.OutOfMemoryError: not even one window fits on the device.
        """
        image = image.as_tensor() if isinstance(image, MetaTensor) else image
        size = image.shape[1:]
        missing = [max(roi - n, 0) for roi, n in zip(self.roi_size, size, strict=True)]
        before = [m // 2 for m in missing]
        padding = [p for m, b in zip(reversed(missing), reversed(before), strict=True) for p in (b, m - b)]
        padded = F.pad(image, padding) if any(missing) else image
        axis = max(range(3), key=lambda a: padded.shape[1 + a])
        stop = [b + n for b, n in zip(before, size, strict=True)]
        for slab in self._padded_slabs(padded, network, device, axis):
            kept = [slice(b, s) for b, s in zip(before, stop, strict=True)]
            length = slab.logits.shape[1 + axis]
            first, last = max(before[axis] - slab.start, 0), min(stop[axis] - slab.start, length)
            if last > first:
                kept[axis] = slice(first, last)
                yield Slab(axis, slab.start + first - before[axis], slab.logits[(slice(None), *kept)])

    def _padded_slabs(self, image: Tensor, network: Network, device: torch.device, axis: int) -> Iterator[Slab]:
        at_once = self.threads if device.type == "cpu" else 1
        sums = _Sums(image.shape[1:], self.roi_size, axis, device)
        for start, windows in self._layers(image, axis):
            if sums.started:
                yield from sums.let_go(start)
            sums.move_to(start)
            done = 0
            while done < len(windows):
                size = self.window_batch
                round_ = windows[done : done + size * at_once]
                batches = [round_[i : i + size] for i in range(0, len(round_), size)]
                stacks = [torch.stack([image[_crop(w, self.roi_size)] for w in batch]) for batch in batches]
                try:
                    logits = self._predict_batches(stacks, network, device)
                    for batch, values in zip(batches, logits, strict=True):
                        sums.add(batch, values)
                        done += len(batch)
                except torch.OutOfMemoryError:
                    if not self._take_less(sums):
                        raise
        yield from sums.let_go(image.shape[1 + axis])

    def _predict_batches(self, stacks: Sequence[Tensor], network: Network, device: torch.device) -> Iterator[Tensor]:
        if device.type == "cpu":
            return self.pool.map(lambda windows: self._predict(windows, network, device), stacks)
        return (self._predict(windows, network, device) for windows in stacks)

    def _take_less(self, sums: "_Sums") -> bool:
        """After memory ran out: half the windows at once, then sums on the CPU; False where nothing is left to try."""
        torch.cuda.empty_cache()
        if self.window_batch > 1:
            self.window_batch = math.ceil(self.window_batch / 2)
            logger.warning("the device's memory ran out: %d windows at once from here on", self.window_batch)
        elif sums.device.type != "cpu":
            sums.to_cpu()
            logger.warning("the device's memory ran out: sums are kept on the CPU for this volume")
        else:
            return False
        return True

    @torch.inference_mode()
    def _predict(self, windows: Tensor, network: Network, device: torch.device) -> Tensor:
        windows = windows.to(device)
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            total = torch.zeros(())
            for number, axes in enumerate(self.flips):
                dims = [2 + axis for axis in axes]
                logits = network(windows.flip(dims)).flip(dims).float() if dims else network(windows).float()
                total = total.add_(logits) if number else logits
        return total.div_(len(self.flips)) if len(self.flips) > 1 else total

    def _layers(self, image: Tensor, axis: int) -> list[tuple[int, list[Window]]]:
        """Windows by their first voxel along ``axis``, in order; those without foreground are left out."""
        size = image.shape[1:]
        filled = self._filled_cubes(image)
        steps = [  # MONAI's scan interval
            n if n == roi else max(int(roi * (1 - self.overlap)), 1) for n, roi in zip(size, self.roi_size, strict=True)
        ]
        layers: dict[int, list[Window]] = {}
        for crop in dense_patch_slices(size, self.roi_size, steps):
            layer = layers.setdefault(crop[axis].start, [])
            if filled[tuple(slice(s.start // POOL, math.ceil(s.stop / POOL)) for s in crop)].any():
                layer.append(tuple(s.start for s in crop))
        return sorted(layers.items())

    def _filled_cubes(self, image: Tensor) -> Tensor:
        """Which cubes of ``POOL`` voxels hold foreground, ``(X/POOL, ...)``; all of them, where none does."""
        if self.foreground is None:
            return torch.ones([math.ceil(n / POOL) for n in image.shape[1:]], dtype=torch.bool)
        means = F.avg_pool3d(image.amax(dim=0)[None], POOL, ceil_mode=True)[0]
        filled = (means > self.foreground).cpu()
        return filled if filled.any() else torch.ones_like(filled)


class _Sums:
    """Weighted logits and weights of the slices that windows still reach: one window thick along ``axis``."""

    def __init__(self, size: Sequence[int], roi_size: Sequence[int], axis: int, device: torch.device) -> None:
        self.size, self.roi_size, self.axis, self.device = list(size), tuple(roi_size), axis, device
        self.importance = compute_importance_map(tuple(roi_size), mode="gaussian", device=device, dtype=torch.float32)
        self.thickness = roi_size[axis]
        self.start = 0  # slice at which the sums begin
        self.sent = 0  # slices that have left
        self.logits = self.weights = torch.empty(0)

    @property
    def started(self) -> bool:
        return self.logits.numel() > 0

    def to_cpu(self) -> None:
        self.device = torch.device("cpu")
        self.importance = self.importance.cpu()
        if self.started:
            self.logits, self.weights = self.logits.cpu(), self.weights.cpu()

    def add(self, windows: Sequence[Window], logits: Tensor) -> None:
        """Add the logits ``(b, classes, *roi_size)`` of windows of this layer."""
        if not self.started:
            shape = list(self.size)
            shape[self.axis] = self.thickness
            self.logits = torch.zeros([logits.shape[1], *shape], device=self.device)
            self.weights = torch.zeros(shape, device=self.device)
        weighted = logits.to(self.device) * self.importance
        for window, values in zip(windows, weighted, strict=True):
            x, y, z = (first - self.start * (axis == self.axis) for axis, first in enumerate(window))
            place = _crop((x, y, z), self.roi_size)
            self.logits[place] += values
            self.weights[place[1:]] += self.importance

    def move_to(self, start: int) -> None:
        """Begin at another slice; the slices before it must have left."""
        if self.started and start > self.start:
            shift = min(start - self.start, self.thickness)
            for sums in (self.logits, self.weights):
                dim = sums.dim() - 3 + self.axis
                kept = sums.narrow(dim, shift, self.thickness - shift).clone()
                sums.zero_()
                sums.narrow(dim, 0, self.thickness - shift).copy_(kept)
        self.start = start

    def let_go(self, stop: int) -> Iterator[Slab]:
        """The finished slices before ``stop``; those that no window reached are background."""
        if self.sent < self.start:
            yield from self._nothing(min(self.start, stop))
        first, last = self.sent - self.start, min(stop - self.start, self.thickness)
        if last > first:
            logits = self.logits.narrow(1 + self.axis, first, last - first)
            weights = self.weights.narrow(self.axis, first, last - first)
            unseen = weights == 0
            finished = logits / weights.masked_fill(unseen, 1)
            finished[0].masked_fill_(unseen, 0)
            finished[1:].masked_fill_(unseen, NOTHING)
            yield Slab(self.axis, self.sent, finished)
            self.sent += last - first
        yield from self._nothing(stop)

    def _nothing(self, stop: int) -> Iterator[Slab]:
        while self.sent < stop:
            shape = list(self.size)
            shape[self.axis] = min(stop - self.sent, self.thickness)
            empty = torch.full([self.logits.shape[0], *shape], NOTHING, device=self.device)
            empty[0] = 0
            yield Slab(self.axis, self.sent, empty)
            self.sent += shape[self.axis]


def _crop(window: Window, roi_size: Sequence[int]) -> tuple[slice, ...]:
    """The window in an array ``(C, X, Y, Z)``."""
    return (slice(None), *(slice(w, w + roi) for w, roi in zip(window, roi_size, strict=True)))
