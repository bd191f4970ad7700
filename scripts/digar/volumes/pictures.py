"""Pictures of volumes and their labels, all drawn here: pages of planes for people, thumbnails for reports."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from digar.volumes.files import whole_file
from digar.volumes.grids import CanonicalAxes

COLOURS = [  # of labels 1, 2, ...: bright and far apart, none of them near a grey of the image
    to_rgb(name)
    for name in ("#ff4a3d", "#29c7ff", "#ffd92e", "#37e06c", "#ff63dc", "#ff9838", "#7d8bff", "#b6ff3c", "#00f0c8",
                 "#ffb3c7")
]  # fmt: skip
PLANES = ("sagittal", "coronal", "axial")
EDGES = (("A", "P", "I", "S"), ("R", "L", "I", "S"), ("R", "L", "P", "A"))  # left, right, bottom, top of each plane
BAR_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # mm
HALO: list[effects.AbstractPathEffect] = [effects.withStroke(linewidth=2.2, foreground="black")]
THUMBNAIL_SIDE = 110  # pixels of the longer side of a plane
THUMBNAIL_OPACITY = 0.45
THUMBNAIL_QUALITY = 70  # of the JPEG


def label_colour(value: int) -> tuple[float, float, float]:
    """The colour of a label everywhere, as red, green and blue from 0 to 1."""
    return COLOURS[(int(value) - 1) % len(COLOURS)]


def best_planes(mask: np.ndarray) -> tuple[int, int, int]:
    """The index along each axis with the most labelled voxels; the middle where nothing is labelled."""
    if not mask.any():
        x, y, z = mask.shape
        return x // 2, y // 2, z // 2
    foreground = mask > 0
    counts = [foreground.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    x, y, z = (int(c.argmax()) for c in counts)
    return x, y, z


def plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of a volume in RAS order as radiologists look at it: the patient's front or right on the left."""
    return np.take(volume, index, axis=axis).T[::-1, ::-1]


@dataclass(frozen=True)
class Planes:
    """What a picture shows of a volume: three slices of it and of its masks.

    Args:
        title: of the row.
        images: sagittal, coronal and axial slice.
        masks: three slices of each mask; the first is outlined solid, the second dashed.
        window: intensities drawn black and white.
        spacing: voxel size in mm along right, anterior and superior.
        placed: whether the volume's directions are known, so that they can be marked.
    """

    title: str
    images: list[np.ndarray]
    masks: list[list[np.ndarray]]
    window: tuple[float, float]
    spacing: tuple[float, ...]
    placed: bool


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99.9 of the finite voxels: what a volume is drawn between."""
    low, high = np.percentile(image[np.isfinite(image)], [1, 99.9])
    return float(low), float(high)


def take_planes(
    title: str,
    image: np.ndarray,
    masks: Sequence[np.ndarray] = (),
    affine: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
) -> Planes:
    """Three slices of a volume, through the planes with the most labelled voxels of the first mask that holds any.

    Args:
        title: of the row: the case, and its Dice where there is one.
        image: ``(X, Y, Z)``.
        masks: label volumes ``(X, Y, Z)``.
        affine: voxel to RAS mm, for proportions and directions; None where the volume has no place in the world.
        window: intensities drawn black and white; None: the volume's own percentiles 1 and 99.9.
    """
    spacing = (1.0, 1.0, 1.0)
    if affine is not None:
        axes = CanonicalAxes.of(np.asarray(affine))
        image, masks = axes.apply(image), [axes.apply(mask) for mask in masks]
        x, y, z = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[list(axes.order)].tolist()
        spacing = (x, y, z)
    at = best_planes(next((mask for mask in masks if mask.any()), np.zeros(image.shape, bool)))
    low, high = window or intensity_window(image)

    def slices(volume: np.ndarray) -> list[np.ndarray]:
        return [plane(volume, axis, at[axis]).copy() for axis in range(3)]

    shown = [slices(mask) for mask in masks]
    return Planes(title, slices(image), shown, (low, max(high, low + 1e-6)), spacing, affine is not None)


def draw_planes(axes: Sequence[Axes], planes: Planes) -> None:
    """Draw three planes into three matplotlib axes, with their directions and a scale bar."""
    for axis, ax in enumerate(axes):
        across, up = (s for a, s in enumerate(planes.spacing) if a != axis)
        low, high = planes.window
        ax.imshow(planes.images[axis], cmap="gray", vmin=low, vmax=high, aspect=up / across)
        for slices, style in zip(planes.masks, ("solid", "dashed"), strict=False):
            for value in np.unique(slices[axis][slices[axis] > 0]):
                lines = ax.contour(
                    slices[axis] == value, levels=[0.5], colors=[label_colour(value)], linewidths=1.3, linestyles=style
                )
                lines.set_path_effects(HALO)
        ax.set_axis_off()
        if planes.placed:
            _mark_directions(ax, axis)
            _draw_scale(ax, planes.images[axis].shape, across)


def _mark_directions(ax: Axes, axis: int) -> None:
    left, right, bottom, top = EDGES[axis]
    for letter, x, y, across, up in (
        (left, 0.02, 0.5, "left", "center"), (right, 0.98, 0.5, "right", "center"),
        (bottom, 0.5, 0.02, "center", "bottom"), (top, 0.5, 0.98, "center", "top"),
    ):  # fmt: skip
        ax.text(x, y, letter, transform=ax.transAxes, color="white", fontsize=8, ha=across, va=up, path_effects=HALO)


def _draw_scale(ax: Axes, shape: Sequence[int], spacing: float) -> None:
    """A bar of a round length, about a quarter of the width."""
    width = shape[1] * spacing
    length = max((n for n in BAR_LENGTHS if n <= width / 3), default=BAR_LENGTHS[0])
    begin, height = 0.04 * shape[1], 0.94 * shape[0] - 0.5
    bar = Line2D([begin, begin + length / spacing], [height, height], color="white", linewidth=2, path_effects=HALO)
    ax.add_line(bar)
    ax.text(
        begin,
        0.92 * shape[0] - 0.5,
        f"{length} mm",
        color="white",
        fontsize=7,
        ha="left",
        va="bottom",
        path_effects=HALO,
    )


def picture_page(path: str | Path, rows: Sequence[Planes], title: str, labels: Mapping[int, str] | None = None) -> None:
    """Write a PNG page with one volume per row in three planes, and a legend of the labels that are in them.

    Args:
        path: the PNG file; its folder is made.
        rows: see :func:`take_planes`.
        title: of the page.
        labels: value to name; a value without a name is called by its number.
    """
    widths = np.mean(
        [[image.shape[1] * _across(row, axis) for axis, image in enumerate(row.images)] for row in rows], 0
    )
    heights = [max(image.shape[0] * _up(row, axis) for axis, image in enumerate(row.images)) for row in rows]
    scale = 9 / widths.sum()  # inches per mm: all planes of a page alike
    height = sum(scale * h + 0.35 for h in heights) + 0.8
    figure = Figure(figsize=(9, min(max(height, 3), 60)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths, height_ratios=heights)
    for number, (axes, row) in enumerate(zip(grid, rows, strict=True)):
        draw_planes(axes, row)
        axes[0].set_title(row.title, loc="left", fontsize=9)
        if number == 0 and row.placed:
            for ax, name in zip(axes, PLANES, strict=True):
                ax.set_title(name, loc="right", fontsize=8, color="dimgray")
    values = sorted({int(v) for row in rows for mask in row.masks for s in mask for v in np.unique(s) if v > 0})
    lines = [Line2D([], [], color=label_colour(v), linewidth=3, label=_name(v, labels)) for v in values]
    if any(len(row.masks) > 1 for row in rows):
        lines += [Line2D([], [], color="black", linestyle="-", label="truth")]
        lines += [Line2D([], [], color="black", linestyle="--", label="prediction")]
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 6), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


class Prediction(NamedTuple):
    """A pretraining sample and what became of it, volumes ``(X, Y, Z)``; ``error`` is 0 where nothing was predicted."""

    title: str
    image: np.ndarray
    prefix: np.ndarray
    predicted: np.ndarray
    error: np.ndarray


def prediction_page(path: str | Path, samples: Sequence[Prediction], title: str) -> None:
    """Write a PNG page with one sample per row: image, prefix, prefix and predictions, error, in the middle plane.

    Args:
        path: the PNG file; its folder is made.
        samples: of equal size.
        title: of the page.
    """
    shape = samples[0].image.shape
    figure = Figure(
        figsize=(10.5, min(len(samples) * (10 / 4 * shape[1] / shape[0] + 0.3) + 0.6, 60)), layout="constrained"
    )
    grid = figure.subplots(len(samples), 4, squeeze=False)
    largest = max(max(float(np.percentile(sample.error, 99.5)) for sample in samples), 1e-6)
    for number, (axes, sample) in enumerate(zip(grid, samples, strict=True)):
        low, high = intensity_window(sample.image)
        for ax, volume in zip(axes, sample[1:4], strict=False):
            ax.imshow(plane(volume, 2, shape[2] // 2), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        errors = axes[3].imshow(plane(sample.error, 2, shape[2] // 2), cmap="magma", vmin=0, vmax=largest)
        axes[0].set_title(sample.title, loc="left", fontsize=8)
        if number == 0:
            for ax, name in zip(axes[1:], ("prefix", "prefix, then predicted", "absolute error"), strict=True):
                ax.set_title(name, loc="left", fontsize=8)
        for ax in axes:
            ax.set_axis_off()
    figure.colorbar(errors, ax=list(grid[:, 3]), shrink=0.6)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _across(row: Planes, axis: int) -> float:
    return row.spacing[1] if axis == 0 else row.spacing[0]


def _up(row: Planes, axis: int) -> float:
    return row.spacing[1] if axis == 2 else row.spacing[2]


def _name(value: int, labels: Mapping[int, str] | None) -> str:
    return (labels or {}).get(value, f"label {value}")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, to a temporary name that is renamed; its folder is made."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


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
        scale = THUMBNAIL_SIDE / max(across, up)
        size = (max(round(across * scale), 1), max(round(up * scale), 1))
        there = min(round(index * (image.shape[axis] - 1) / max(mask.shape[axis] - 1, 1)), image.shape[axis] - 1)
        grey = Image.fromarray(np.uint8(255 * plane(image, axis, there).clip(0, 1))).resize(
            size, Image.Resampling.BILINEAR
        )
        labels = np.asarray(
            Image.fromarray(plane(mask, axis, index).astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        )
        coloured = np.repeat(np.asarray(grey, dtype=np.float32)[..., None], 3, axis=2)
        for value in np.unique(labels[labels > 0]):
            colour = 255 * np.array(label_colour(value))
            coloured[labels == value] *= 1 - THUMBNAIL_OPACITY
            coloured[labels == value] += THUMBNAIL_OPACITY * colour
        canvas = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
        top, left = (THUMBNAIL_SIDE - size[1]) // 2, (THUMBNAIL_SIDE - size[0]) // 2
        canvas[top : top + size[1], left : left + size[0]] = coloured
        planes.append(canvas)
    picture = io.BytesIO()
    Image.fromarray(np.concatenate(planes, axis=1)).save(picture, "JPEG", quality=THUMBNAIL_QUALITY)
    return base64.b64encode(picture.getvalue()).decode()
