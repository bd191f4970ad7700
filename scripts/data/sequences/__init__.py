"""Samples for next-patch pretraining, built on the fly from prepared scans: three kinds that end alike."""

from scripts.data.sequences.building import KINDS, Sequenced
from scripts.data.sequences.contrast import ContrastSequenced
from scripts.data.sequences.prefix import RandPrefixd, prepare_next_patch
from scripts.data.sequences.semantic import SemanticSequenced
from scripts.data.sequences.spatial import SpatialSequenced, copied_patches

__all__ = [
    "KINDS",
    "ContrastSequenced",
    "RandPrefixd",
    "SemanticSequenced",
    "Sequenced",
    "SpatialSequenced",
    "copied_patches",
    "prepare_next_patch",
]
