"""Pictures of volumes: three planes, the label's and the prediction's outlines over the image."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99.9: what a volume is drawn between."""
    low, high = np.percentile(image, [1, 99.9])
    return float(low), float(high)


def draw_planes(
    axes: Sequence,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    at: Sequence[int],
    spacing: Sequence[float],
    window: tuple[float, float] | None = None,
) -> None:
    """Draw three planes of a volume into three matplotlib axes.

    Args:
        axes: three matplotlib axes.
        image: ``(X, Y, Z)``.
        masks: label volumes ``(X, Y, Z)``: the first is outlined solid, the second dashed.
        at: plane index along each axis.
        spacing: voxel size in mm per axis, for the right proportions.
        window: intensities drawn black and white; None: the volume's own percentiles 1 and 99.9.
    """
    low, high = intensity_window(image) if window is None else window
    for axis, ax in enumerate(axes):
        across, up = [s for a, s in enumerate(spacing) if a != axis]
        ax.imshow(plane(image, axis, at[axis]), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=up / across)
        for mask, style in zip(masks, ("solid", "dashed"), strict=False):
            for value in np.unique(mask[mask > 0]):
                outline = plane(mask == value, axis, at[axis])
                if outline.any():
                    colour = [COLOURS[(int(value) - 1) % len(COLOURS)]]
                    ax.contour(outline, levels=[0.5], colors=colour, linewidths=1.0, linestyles=style)
        ax.set_axis_off()


def picture_page(path: str | Path, rows: Sequence[dict], title: str) -> None:
    """Write a PNG page with one volume per row in three planes.

    Args:
        path: the PNG file; its folder is made.
        rows: ``title``, ``image``, ``masks`` and, where not the default, ``spacing`` and ``window`` of each volume, see
            :func:`draw_planes`.
        title: of the page.
    """
    figure = Figure(figsize=(9, 3.1 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        at, spacing = best_planes(row["masks"][0]), row.get("spacing", (1, 1, 1))
        draw_planes(axes, row["image"], row["masks"], at, spacing, row.get("window"))
        axes[0].set_title(row["title"], loc="left", fontsize=9)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, to a temporary name that is renamed; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, dpi=90, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
