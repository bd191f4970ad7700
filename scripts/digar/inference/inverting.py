"""From the network's logits to a mask in the image's own grid, slab by slab and class by class.

Probabilities of all classes never exist at the image's full size: each slab is interpolated class by class with a
running maximum. A voxel between voxels whose likeliest class is the background is background too, so only the box
around the others is interpolated; and a class that nowhere reaches ``1 / classes`` cannot be the likeliest.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from monai.utils.enums import MetaKeys
from torch import Tensor

from digar.inference.windows import Slab
from digar.volumes.grids import SAME_GRID, CanonicalAxes, placed, positions_between, resample
from digar.volumes.header import VolumeError

Box = list[tuple[int, int]]  # first voxel and the one after the last, along each axis
SLAB_THICKNESS = 32  # slices, where a whole volume of logits is cut into slabs


class InvertToMaskd(Invertd):
    """Logits in the working grid to the likeliest class in the image's own grid, ``(1, X, Y, Z)`` uint8 or uint16.

    The way back is read off the affines: that of ``image`` as it is now, and the one that it was read with
    (``original_affine``, ``spatial_shape``). So it serves any preprocessing that changes orientation and spacing alone.
    As an ``Invertd`` it is found, and left out where wanted, by programs that look for one.

    Args:
        keys: of the logits: a tensor ``(classes, X, Y, Z)`` or an iterator over its :class:`Slab` s, in order.
        image_key: the image, a MetaTensor in the working grid.
        probabilities_key: where ``data`` holds an array ``(classes, X, Y, Z)`` under it (of the image's own size, such
            as a memory map), it is filled with the probabilities.

    Raises:
        VolumeError: logits that are NaN or infinite.
        ValueError: the two grids are not parallel.
    """

    def __init__(self, keys: str, image_key: str = "image", probabilities_key: str = "probabilities") -> None:
        super().__init__(keys, Compose(), orig_keys=image_key)
        self.image_key = image_key
        self.probabilities_key = probabilities_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        inverted = dict(data)
        image = inverted[self.image_key]
        source = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], dtype=np.float64)
        shape = tuple(int(n) for n in image.meta[MetaKeys.SPATIAL_SHAPE])
        axes = CanonicalAxes.of(source)
        for key in self.key_iterator(inverted):
            slabs = cut(inverted[key]) if isinstance(inverted[key], Tensor) else inverted[key]
            slabs = _finite(slabs, image.meta.get("filename_or_obj", "the image"))
            sink = inverted.get(self.probabilities_key)
            mask = likeliest(
                slabs,
                tuple(shape[axis] for axis in axes.order),
                axes.turn_affine(source, shape),
                image.affine.numpy(),
                image.shape[1:],
                None if sink is None else axes.apply(sink),
            )
            turned = torch.from_numpy(np.ascontiguousarray(axes.undo(mask))[None])
            inverted[key] = placed(turned, source.copy(), image)
        return inverted


def _finite(slabs: Iterable[Slab], path: str) -> Iterator[Slab]:
    for slab in slabs:
        if not slab.logits.isfinite().all():
            raise VolumeError(
                path,
                "the network's answer is NaN or infinite: its weights or the image are damaged, or the numbers "
                "overflow (--precision float32)",
            )
        yield slab


def cut(logits: Tensor) -> Iterator[Slab]:
    """A volume of logits ``(classes, X, Y, Z)`` as slabs along its longest axis."""
    logits = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
    axis = max(range(3), key=lambda a: logits.shape[1 + a])
    for start in range(0, logits.shape[1 + axis], SLAB_THICKNESS):
        length = min(SLAB_THICKNESS, logits.shape[1 + axis] - start)
        yield Slab(axis, start, logits.narrow(1 + axis, start, length))


def likeliest(
    slabs: Iterable[Slab],
    shape: tuple[int, ...],
    affine: np.ndarray,
    working_affine: np.ndarray,
    working_shape: tuple[int, ...],
    probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """The likeliest class of every voxel of a grid, from logits in another one with parallel axes.

    Args:
        slabs: of the logits, in order.
        shape, affine: of the wanted grid, in RAS order.
        working_affine, working_shape: of the logits' grid, in RAS order.
        probabilities: ``(classes, *shape)``, to be filled.

    Returns:
        ``shape``, uint8, or uint16 for more than 256 classes.
    """
    positions = positions_between(affine, shape, working_affine)
    axes = [_Axis(p, n) for p, n in zip(positions, working_shape, strict=True)]
    mask = np.zeros(shape, np.uint8)
    held: Tensor | None = None  # the slice before the slab, which the first voxels behind it need too
    ready = 0
    for slab in slabs:
        logits = slab.logits.float().cpu()
        first = slab.start
        if held is not None:
            logits, first = torch.cat([held, logits], dim=1 + slab.axis), first - 1
        if logits.shape[0] > 256:
            mask = mask.astype(np.uint16, copy=False)
        length = logits.shape[1 + slab.axis]
        held = logits.narrow(1 + slab.axis, length - 1, 1).clone()
        along = axes[slab.axis]
        stop = int((along.high < first + length).sum())  # voxels whose both neighbours are here
        outputs = [(0, n) for n in shape]
        outputs[slab.axis] = (ready, stop)
        ready = stop
        offset = [0, 0, 0]
        offset[slab.axis] = first
        _fill(mask, logits, offset, outputs, axes, probabilities)
    return mask


class _Axis:
    """Positions of the wanted voxels along one axis, and the working voxels on both sides of each."""

    def __init__(self, positions: Tensor, length: int) -> None:
        self.positions = positions.clamp(0, length - 1)
        self.low = self.positions.floor().long()
        self.high = (self.low + 1).clamp(max=length - 1)
        same = len(positions) == length and (positions - torch.arange(length)).abs().max() < SAME_GRID
        self.same = bool(same)
        if self.same:
            self.low = self.high = torch.arange(length)

    def between(self, outputs: tuple[int, int], start: int, stop: int) -> tuple[int, int]:
        """Those of the outputs that a working voxel from ``start`` to ``stop`` (excluded) has a part in."""
        first, last = outputs
        low, high = self.low[first:last], self.high[first:last]
        return first + int((high < start).sum()), first + int((low < stop).sum())


def _fill(
    mask: np.ndarray,
    logits: Tensor,
    offset: list[int],
    outputs: Box,
    axes: list[_Axis],
    probabilities: np.ndarray | None,
) -> None:
    """Set the voxels ``outputs`` of a mask from logits ``(classes, ...)`` that begin at working voxel ``offset``."""
    classes = logits.shape[0]
    box = [(0, n) for n in logits.shape[1:]] if probabilities is not None else _box_of_others(logits)
    if box is None:
        return
    outputs = [
        axis.between(out, start + o, stop + o)
        for axis, out, (start, stop), o in zip(axes, outputs, box, offset, strict=True)
    ]
    if any(first >= last for first, last in outputs):
        return
    needed = [  # working voxels that the outputs are interpolated from
        (int(axis.low[first]) - o, int(axis.high[last - 1]) + 1 - o)
        for axis, (first, last), o in zip(axes, outputs, offset, strict=True)
    ]
    parts = logits[(slice(None), *(slice(*n) for n in needed))].softmax(dim=0)
    place = tuple(slice(*out) for out in outputs)
    best: Tensor | None = None
    for label in range(classes):
        if label and probabilities is None and parts[label].max() < 1 / classes - 1e-6:
            continue
        values = parts[label]
        for number, (axis, (first, last)) in enumerate(zip(axes, outputs, strict=True)):
            if not axis.same:
                here = axis.positions[first:last] - offset[number] - needed[number][0]
                values = resample(values, number, here)
        if probabilities is not None:
            probabilities[label][place] = values.numpy()
        if best is None:
            best, labels = values.clone(), np.zeros(values.shape, mask.dtype)
            continue
        better = values > best
        labels[better.numpy()] = label
        torch.maximum(best, values, out=best)
    mask[place] = labels


def _box_of_others(logits: Tensor) -> Box | None:
    """The box, with a voxel around it, of the voxels whose likeliest class is not the background; None without any."""
    others = logits[1:].amax(dim=0) >= logits[0]
    if not others.any():
        return None
    box = []
    for axis in range(3):
        where = others.amax(dim=[a for a in range(3) if a != axis]).nonzero()
        box.append((max(int(where[0]) - 1, 0), min(int(where[-1]) + 2, others.shape[axis])))
    return box
