"""The network, in the order of the forward pass: patches, position, attention, transformer, heads, tasks; weights."""

from digar.networks.tasks import ClassificationNetwork, PretrainingNetwork, SegmentationNetwork
from digar.networks.transformer import SIZES, Backbone

__all__ = ["SIZES", "Backbone", "ClassificationNetwork", "PretrainingNetwork", "SegmentationNetwork"]
