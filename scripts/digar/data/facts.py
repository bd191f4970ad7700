"""What images and labels are like: read once, for planning a training and for the range that a network has seen."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from digar.volumes.checks import intensity_percentiles

SAMPLED_VOXELS = 10_000  # per case and channel, of those within labels


class CaseFacts(NamedTuple):
    """What one case tells. Axes run to the right, the front and the top, as the workflows turn every image.

    ``spacing`` mm and ``shape`` voxels per axis; ``percentiles`` ``(channels, 3)`` of the image's intensities;
    ``labelled`` ``(channels, n)``, a sample of the voxels within labels; ``labels``, the values that occur, 0 left out.
    """

    spacing: np.ndarray
    shape: np.ndarray
    percentiles: np.ndarray
    labelled: np.ndarray
    labels: list[int]


def case_facts(image: MetaTensor, label: MetaTensor | None = None) -> CaseFacts:
    """Of an image ``(C, X, Y, Z)`` with its affine, and its label ``(1, X, Y, Z)`` if it has one."""
    affine = image.affine.numpy()
    turned = nib.io_orientation(affine)[:, 0].argsort()  # the image's axis that runs along each axis of the world
    channels = image.numpy()
    values = np.zeros((1, *channels.shape[1:]), np.uint8) if label is None else label.numpy()
    voxels = channels[:, values[0] > 0]
    chosen = np.random.default_rng(0).permutation(voxels.shape[1])[:SAMPLED_VOXELS]
    return CaseFacts(
        spacing=voxel_sizes(affine)[turned],
        shape=np.array(channels.shape[1:])[turned],
        percentiles=np.array([intensity_percentiles(channel) for channel in channels]),
        labelled=voxels[:, chosen],
        labels=[int(value) for value in np.unique(values) if value > 0],
    )


def span(facts: Sequence[CaseFacts]) -> dict[str, list]:
    """Least and greatest of what images measure, as :class:`digar.data.task.TrainedWith` has it."""
    spacings = np.array([case.spacing for case in facts])
    extents = spacings * np.array([case.shape for case in facts])
    percentiles = np.array([case.percentiles for case in facts])  # (images, channels, 3)
    ranges = {"spacing_mm": np.sort(spacings, axis=1), "extent_mm": np.sort(extents, axis=1)}
    return {
        **{name: [_short(v.min(axis=0)), _short(v.max(axis=0))] for name, v in ranges.items()},
        "intensity_percentiles": [
            [_short([c[:, p].min(), c[:, p].max()]) for p in range(c.shape[1])] for c in percentiles.transpose(1, 0, 2)
        ],
    }


def label_warnings(facts: Sequence[CaseFacts], labels: Mapping[int, str]) -> list[str]:
    """What a user should know of the labels before a training: which never occur, and how many cases hold none."""
    found = {value for case in facts for value in case.labels}
    never = [f"{value} ({name})" for value, name in labels.items() if value not in found]
    empty = sum(not case.labels for case in facts)
    if empty == len(facts):
        return ["all labels contain only background: nothing can be learned from them"]
    notes = [f"label {name} occurs in no case: it cannot be learned" for name in never]
    return notes + ([f"{empty} of {len(facts)} cases contain no label at all"] if empty else [])


def describe(facts: Sequence[CaseFacts]) -> list[str]:
    """The data set in a few lines."""

    def median_and_span(values: Sequence[np.ndarray]) -> str:
        stacked = np.stack(values)
        rows = (np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0))
        median, low, high = (" x ".join(f"{v:.4g}" for v in row) for row in rows)
        return f"{median} ({low} to {high})"

    lines = [
        f"{len(facts)} images, axes to the right, the front, the top",
        f"size in voxels: {median_and_span([case.shape for case in facts])}",
        f"spacing in mm: {median_and_span([case.spacing for case in facts])}",
    ]
    for channel in range(len(facts[0].percentiles)):
        inside = np.concatenate([case.labelled[channel] for case in facts])
        if inside.size:
            low, middle, high = np.percentile(inside, [0.5, 50, 99.5])
            lines.append(f"intensity within labels, channel {channel}: {middle:.4g} ({low:.4g} to {high:.4g}, 99 %)")
    return lines


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
