"""Overlap of voxels."""

from digar.evaluation.metrics.metric import LabelMasks


def dice(masks: LabelMasks) -> float:
    """Twice the common voxels by those of both masks; 0 where one is empty."""
    predicted, true, common = masks.counts
    return 2 * common / (predicted + true)


def jaccard(masks: LabelMasks) -> float:
    """The common voxels by those of either mask; 0 where one is empty."""
    predicted, true, common = masks.counts
    return common / (predicted + true - common)
