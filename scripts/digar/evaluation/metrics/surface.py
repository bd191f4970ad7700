"""Distances between the surfaces of two masks, mm: HD95 and ASSD as MedPy 0.5.2, surface Dice as MONAI 1.6.1."""

import math

import numpy as np

from digar.evaluation.metrics.metric import LabelMasks

ROUNDING_MM = 1e-3  # a distance this little over the tolerance equals it: spacings come from rounded affines


def hd95(masks: LabelMasks) -> float:
    """The 95th percentile of both directions' distances together; undefined where one mask is empty.

    MedPy 0.5.2's ``hd95`` (MONAI's is the larger of the two directions' percentiles).
    """
    return math.nan if masks.one_is_empty else float(np.percentile(masks.distances, 95))


def assd(masks: LabelMasks) -> float:
    """The mean of both directions' distances together; undefined where one mask is empty.

    MedPy 0.5.2's ``assd`` and MONAI's; until 0.4.0 MedPy took the mean of the two directions' means.
    """
    return math.nan if masks.one_is_empty else float(masks.distances.mean())


def surface_dice(masks: LabelMasks) -> float:
    """The share of all surface voxels within the tolerance of the other surface; 0 where one mask is empty.

    Nikolov et al., JMIR 2021, as MONAI 1.6.1's ``compute_surface_dice`` counts it: by voxels. DeepMind's
    ``surface-distance`` weighs pieces of surface by their area instead; its numbers are others.
    """
    return 0.0 if masks.one_is_empty else float((masks.distances <= masks.tolerance_mm + ROUNDING_MM).mean())
