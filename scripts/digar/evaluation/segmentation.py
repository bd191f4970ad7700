"""Scores of one mask against the truth, per label, in all ``METRICS``.

Empty masks: where neither mask holds the label nothing is scored (NaN everywhere), where only one does the overlap is 0
and the distances are undefined (NaN).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from digar.evaluation.metrics import METRICS, LabelMasks


@dataclass(frozen=True)
class Score:
    """Scores of one label in one case: ``score["dice"]``, NaN where undefined.

    Args:
        case, label: their names.
        values: by ``METRICS``; those that are undefined may be missing.
        empty: which mask lacks the label: ``both``, ``truth``, ``prediction``, or none.
    """

    case: str
    label: str
    values: dict[str, float] = field(default_factory=dict)
    empty: str = ""

    def __getitem__(self, metric: str) -> float:
        return self.values.get(metric, math.nan)


def score_label(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float, case: str, label: str
) -> Score:
    """All scores of one label; see :class:`LabelMasks` for the arguments."""
    x, y, z = spacing
    masks = LabelMasks(prediction, truth, (x, y, z), tolerance_mm)
    predicted, true, _ = masks.counts
    if predicted == true == 0:
        return Score(case, label, empty="both")
    values = {name: metric.compute(masks) for name, metric in METRICS.items()}
    return Score(case, label, values, "truth" if true == 0 else "prediction" if predicted == 0 else "")


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
