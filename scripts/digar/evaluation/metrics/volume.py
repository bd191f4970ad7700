"""Volumes in ml."""

from digar.evaluation.metrics.metric import LabelMasks


def volume(masks: LabelMasks) -> float:
    """Of the prediction."""
    return masks.counts[0] * masks.millilitres


def true_volume(masks: LabelMasks) -> float:
    """Of the truth."""
    return masks.counts[1] * masks.millilitres


def volume_error(masks: LabelMasks) -> float:
    """Prediction minus truth."""
    return volume(masks) - true_volume(masks)
