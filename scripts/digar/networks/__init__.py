"""The networks.

In the order of the forward pass: settings, patches, position, attention, transformer, heads, models. What they are run
with: weights, precision, compilation, recomputation (of activations in the backward pass), exported files.
"""

from digar.networks.models import ClassificationNetwork, PretrainingNetwork, SegmentationNetwork
from digar.networks.settings import SIZES, BackboneSettings
from digar.networks.transformer import Backbone

__all__ = [
    "SIZES",
    "Backbone",
    "BackboneSettings",
    "ClassificationNetwork",
    "PretrainingNetwork",
    "SegmentationNetwork",
]
