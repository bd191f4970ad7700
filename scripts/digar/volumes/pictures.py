"""Pictures of volumes: three planes, the label's and the prediction's outlines over the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from digar.volumes.files import whole_file

COLOURS = matplotlib.colormaps["tab10"].colors


def best_planes(label: np.ndarray) -> tuple[int, int, int]:
    """The index along each axis with the most labelled voxels; the middle where nothing is labelled."""
    if not label.any():
        return tuple(n // 2 for n in label.shape)
    foreground = label > 0
    counts = [foreground.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return tuple(int(c.argmax()) for c in counts)


def plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as it is looked at: second remaining axis upwards."""
    return np.take(volume, index, axis=axis).T[::-1]


class Planes(NamedTuple):
    """What a picture shows of a volume: three slices of it and of its masks, and how they are drawn.

    ``images`` holds three slices, ``masks`` three per mask; ``window`` is what is black and white; ``spacing`` is the
    voxel size in mm per axis of the volume.
    """

    title: str
    images: list[np.ndarray]
    masks: list[list[np.ndarray]]
    window: tuple[float, float]
    spacing: tuple[float, ...]


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99.9: what a volume is drawn between."""
    low, high = np.percentile(image, [1, 99.9])
    return float(low), float(high)


def take_planes(
    title: str,
    image: np.ndarray,
    masks: Sequence[np.ndarray] = (),
    spacing: Sequence[float] = (1, 1, 1),
    window: tuple[float, float] | None = None,
) -> Planes:
    """Three slices of a volume, through the planes with the most labelled voxels of the first mask that holds any.

    Args:
        title: of the row.
        image: ``(X, Y, Z)``.
        masks: label volumes ``(X, Y, Z)``: the first will be outlined solid, the second dashed.
        spacing: voxel size in mm per axis, for the right proportions.
        window: intensities drawn black and white; None: the volume's own percentiles 1 and 99.9.
    """
    at = best_planes(next((mask for mask in masks if mask.any()), np.zeros(image.shape, bool)))
    low, high = window or intensity_window(image)

    def slices(volume: np.ndarray) -> list[np.ndarray]:
        return [plane(volume, axis, at[axis]).copy() for axis in range(3)]

    masks_shown = [slices(mask) for mask in masks]
    return Planes(title, slices(image), masks_shown, (low, max(high, low + 1e-6)), tuple(spacing))


def draw_planes(axes: Sequence, planes: Planes) -> None:
    """Draw three planes into three matplotlib axes."""
    for axis, ax in enumerate(axes):
        across, up = [s for a, s in enumerate(planes.spacing) if a != axis]
        low, high = planes.window
        ax.imshow(planes.images[axis], cmap="gray", vmin=low, vmax=high, aspect=up / across)
        for slices, style in zip(planes.masks, ("solid", "dashed"), strict=False):
            mask = slices[axis]
            for value in np.unique(mask[mask > 0]):
                colour = [COLOURS[(int(value) - 1) % len(COLOURS)]]
                ax.contour(mask == value, levels=[0.5], colors=colour, linewidths=1.0, linestyles=style)
        ax.set_axis_off()


def picture_page(path: str | Path, rows: Sequence[Planes], title: str) -> None:
    """Write a PNG page with one volume per row in three planes.

    Args:
        path: the PNG file; its folder is made.
        rows: see :func:`take_planes`.
        title: of the page.
    """
    figure = Figure(figsize=(9, 3.1 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        draw_planes(axes, row)
        axes[0].set_title(row.title, loc="left", fontsize=9)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, to a temporary name that is renamed; its folder is made."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
