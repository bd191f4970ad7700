"""Paired comparisons: differences per patient, their interval by bootstrap over patients, Wilcoxon's test, Holm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, wilcoxon

RESAMPLES = 10_000
Run = tuple[int, int]  # draw (or fold) and seed
Scores = Mapping[Run, Mapping[str, float]]  # each run's score of every patient


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another: mean over patients, 95 % interval, and the p of no difference."""

    mean: float
    low: float
    high: float
    p: float
    patients: int
    runs: int


def patient_means(scores: Scores) -> dict[str, float]:
    """Each patient's mean over the runs (label draws and seeds) that scored it."""
    patients = sorted({patient for run in scores.values() for patient in run})
    return {p: float(np.mean([run[p] for run in scores.values() if p in run])) for p in patients}


def differences(arm: Scores, other: Scores) -> dict[str, float]:
    """Each patient's difference, averaged over the runs that both arms have: the same labels, the same seed."""
    common = arm.keys() & other.keys()
    return patient_means({run: {p: arm[run][p] - other[run][p] for p in arm[run]} for run in sorted(common)})


def compare(arm: Scores, other: Scores) -> Difference | None:
    """Two arms on the same patients, or None where they have no run in common.

    The interval is that of the mean under resampling of patients (percentiles); what another draw of labels or another
    seed would change is averaged out, not in it. The test is Wilcoxon's signed rank test, two-sided.
    """
    values = np.array(list(differences(arm, other).values()))
    if not len(values):
        return None
    low = high = float(values.mean())
    if np.ptp(values) > 0:
        interval = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
        low, high = float(interval.low), float(interval.high)
    p = float(wilcoxon(values).pvalue) if values.any() else 1.0
    return Difference(float(values.mean()), low, high, p, len(values), len(arm.keys() & other.keys()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that stay valid for several comparisons together (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1.0)
    return adjusted.tolist()
