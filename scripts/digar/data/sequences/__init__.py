"""Samples for next-patch pretraining, built on the fly from prepared scans: three kinds that end alike."""

from digar.data.sequences.building import KINDS, Sequenced
from digar.data.sequences.contrast import ContrastSequenced
from digar.data.sequences.prefix import RandPrefixd, prepare_next_patch
from digar.data.sequences.semantic import SemanticSequenced
from digar.data.sequences.spatial import SpatialSequenced, copied_patches

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
