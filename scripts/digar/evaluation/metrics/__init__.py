"""The metrics of segmentation, as the tables order them. To add one: a function in a file, and a line here."""

from digar.evaluation.metrics.metric import LabelMasks, Metric
from digar.evaluation.metrics.overlap import dice, jaccard
from digar.evaluation.metrics.surface import assd, hd95, surface_dice
from digar.evaluation.metrics.volume import true_volume, volume, volume_error

METRICS = {
    "dice": Metric(dice),
    "jaccard": Metric(jaccard),
    "hd95_mm": Metric(hd95, better="lower"),
    "assd_mm": Metric(assd, better="lower"),
    "surface_dice": Metric(surface_dice),
    "volume_ml": Metric(volume, better=None, averaged=False),
    "true_volume_ml": Metric(true_volume, better=None, averaged=False),
    "volume_error_ml": Metric(volume_error, better="near zero", averaged=False),
}

__all__ = ["METRICS", "LabelMasks", "Metric"]
