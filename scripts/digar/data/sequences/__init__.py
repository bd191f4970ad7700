"""Samples for next-patch pretraining, built on the fly from prepared scans: several kinds that end alike."""

from digar.data.sequences.contrast import Contrast
from digar.data.sequences.dataset import SequenceDataset
from digar.data.sequences.kind import Sequenced, SequenceKind
from digar.data.sequences.parts import join_samples, scale_samples
from digar.data.sequences.prefix import RandPrefixd, prepare_next_patch
from digar.data.sequences.semantic import Semantic
from digar.data.sequences.spatial import Spatial

__all__ = [
    "Contrast",
    "RandPrefixd",
    "Semantic",
    "SequenceDataset",
    "SequenceKind",
    "Sequenced",
    "Spatial",
    "join_samples",
    "prepare_next_patch",
    "scale_samples",
]
