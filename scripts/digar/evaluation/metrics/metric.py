"""What a metric is: a number of one label's two masks, and what is good in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance


@dataclass(frozen=True)
class LabelMasks:
    """A label in prediction and truth, at least one of them not empty; shared parts are computed once.

    Args:
        prediction, truth: Boolean, ``(X, Y, Z)``.
        spacing: of a voxel per axis, mm.
        tolerance_mm: of the surface Dice.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, float, float]
    tolerance_mm: float

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """Voxels in the prediction, in the truth, and in both."""
        both = self.prediction & self.truth
        return int(self.prediction.sum()), int(self.truth.sum()), int(both.sum())

    @property
    def one_is_empty(self) -> bool:
        """Whether only one of the two masks holds something."""
        return 0 in self.counts[:2]

    @cached_property
    def distances(self) -> np.ndarray:
        """From every surface voxel of one mask to the nearest of the other, in both directions, mm; neither is empty.

        The surface of a mask is its voxels with a neighbour (by face) outside, the image's border being outside.
        """
        edges = get_mask_edges(self.prediction, self.truth)
        there = get_surface_distance(edges[0], edges[1], spacing=self.spacing)
        back = get_surface_distance(edges[1], edges[0], spacing=self.spacing)
        return np.concatenate([there, back])

    @property
    def millilitres(self) -> float:
        """Of a voxel."""
        return math.prod(self.spacing) / 1000


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Args:
        compute: the number, NaN where it is undefined.
        better: what is good: ``higher``, ``lower``, ``near zero``; None: it describes a case, and none is the worst.
        averaged: whether the mean over a case's labels is taken.
    """

    compute: Callable[[LabelMasks], float]
    better: Literal["higher", "lower", "near zero"] | None = "higher"
    averaged: bool = True

    def badness(self, value: float) -> float:
        """The larger, the worse."""
        return {"higher": -value, "lower": value, "near zero": abs(value)}[self.better or "higher"]
