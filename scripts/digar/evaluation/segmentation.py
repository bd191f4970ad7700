"""Scores of one mask against the truth, per label: overlap, surface distances in mm, volumes in ml.

Empty masks: where neither mask holds the label nothing is scored (NaN everywhere), where only one does the overlap is 0
and the distances are undefined (NaN).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance

ROUNDING_MM = 1e-3  # a distance this little over the tolerance equals it: spacings come from rounded affines
NAN = math.nan


class Score(NamedTuple):
    """Scores of one label in one case; NaN is undefined. ``empty`` says which mask lacks the label, if one does."""

    case: str
    label: str
    dice: float = NAN
    jaccard: float = NAN
    hd95_mm: float = NAN
    assd_mm: float = NAN
    surface_dice: float = NAN
    volume_ml: float = NAN
    true_volume_ml: float = NAN
    volume_error_ml: float = NAN
    empty: str = ""


METRICS = Score._fields[2:-1]


class SurfaceScores(NamedTuple):
    """Distances between two surfaces in mm, and the share of both that lies within a tolerance."""

    hd95: float
    assd: float
    surface_dice: float


def surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> SurfaceScores:
    """HD95 and ASSD as MedPy defines them, and the surface Dice, of two masks that both hold something.

    The surface of a mask is its voxels with a neighbour (by face) outside, the image's border being outside. From every
    surface voxel of one mask the distance to the nearest of the other is taken, in both directions.

    - HD95: the 95th percentile of both directions' distances together (MONAI's is the larger of the two percentiles).
    - ASSD: the mean of the two directions' mean distances (MONAI's is the mean over all distances).
    - Surface Dice: the share of all surface voxels within the tolerance (Nikolov et al., JMIR 2021, voxels counted).

    Args:
        prediction, truth: Boolean, ``(X, Y, Z)``.
        spacing: of a voxel per axis, mm.
        tolerance_mm: of the surface Dice.
    """
    edges = get_mask_edges(prediction, truth)
    there = get_surface_distance(edges[0], edges[1], spacing=spacing)
    back = get_surface_distance(edges[1], edges[0], spacing=spacing)
    distances = np.concatenate([there, back])
    return SurfaceScores(
        hd95=float(np.percentile(distances, 95)),
        assd=float((there.mean() + back.mean()) / 2),
        surface_dice=float((distances <= tolerance_mm + ROUNDING_MM).mean()),
    )


def score_label(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float, case: str, label: str
) -> Score:
    """All scores of one label; see :func:`surface_scores` for the arguments."""
    predicted, true, common = (int(mask.sum()) for mask in (prediction, truth, prediction & truth))
    if predicted == true == 0:
        return Score(case, label, empty="both")
    millilitres = math.prod(spacing) / 1000
    volumes = {
        "volume_ml": predicted * millilitres,
        "true_volume_ml": true * millilitres,
        "volume_error_ml": (predicted - true) * millilitres,
    }
    if predicted == 0 or true == 0:
        empty = "truth" if true == 0 else "prediction"
        return Score(case, label, dice=0.0, jaccard=0.0, surface_dice=0.0, **volumes, empty=empty)
    surface = surface_scores(prediction, truth, spacing, tolerance_mm)
    return Score(
        case,
        label,
        dice=2 * common / (predicted + true),
        jaccard=common / (predicted + true - common),
        hd95_mm=surface.hd95,
        assd_mm=surface.assd,
        surface_dice=surface.surface_dice,
        **volumes,
    )


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    tolerance_mm: float,
    case: str,
    labels: Sequence[str],
) -> list[Score]:
    """Scores of every label of a case.

    Args:
        prediction, truth: label maps ``(X, Y, Z)`` in one grid: 0 is background, k the k-th label.
        spacing: of a voxel per axis, mm.
        tolerance_mm: of the surface Dice.
        case: its name.
        labels: names of the labels 1, 2, ...

    Raises:
        ValueError: the two maps differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"{case}: the mask has shape {prediction.shape}, the label {truth.shape}: they must share one")
    return [
        score_label(prediction == value, truth == value, spacing, tolerance_mm, case, name)
        for value, name in enumerate(labels, start=1)
    ]
