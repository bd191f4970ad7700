"""A small picture of a volume with its mask: three planes, as a JPEG in text."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from digar.volumes.pictures import COLOURS, best_planes, plane

SIDE = 110  # pixels of the longer side of a plane
OPACITY = 0.45
QUALITY = 70


def thumbnail(image: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> str:
    """Three planes through the largest sections of the mask, side by side: a JPEG of about 6 kB in base64.

    Args:
        image: ``(X, Y, Z)`` in RAS order, intensities in [0, 1].
        mask: ``(X, Y, Z)`` in RAS order, another number of voxels over the same extent.
        spacing: of the mask in mm.
    """
    planes = []
    for axis, index in enumerate(best_planes(mask)):
        across, up = (n * s for a, (n, s) in enumerate(zip(mask.shape, spacing, strict=True)) if a != axis)
        scale = SIDE / max(across, up)
        size = (max(round(across * scale), 1), max(round(up * scale), 1))
        there = min(round(index * (image.shape[axis] - 1) / max(mask.shape[axis] - 1, 1)), image.shape[axis] - 1)
        grey = Image.fromarray(np.uint8(255 * plane(image, axis, there).clip(0, 1))).resize(size, Image.BILINEAR)
        labels = np.asarray(Image.fromarray(plane(mask, axis, index).astype(np.int32)).resize(size, Image.NEAREST))
        coloured = np.repeat(np.asarray(grey, dtype=np.float32)[..., None], 3, axis=2)
        for value in np.unique(labels[labels > 0]):
            colour = 255 * np.array(COLOURS[(int(value) - 1) % len(COLOURS)])
            coloured[labels == value] = (1 - OPACITY) * coloured[labels == value] + OPACITY * colour
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
        canvas[top : top + size[1], left : left + size[0]] = coloured
        planes.append(canvas)
    picture = io.BytesIO()
    Image.fromarray(np.concatenate(planes, axis=1)).save(picture, "JPEG", quality=QUALITY)
    return base64.b64encode(picture.getvalue()).decode()
