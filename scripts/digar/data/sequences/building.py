"""One transform for all kinds of sequence: each ends as the same sample."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from digar.data.sequences.contrast import ContrastSequenced
from digar.data.sequences.semantic import SemanticSequenced
from digar.data.sequences.spatial import SpatialSequenced

KINDS = ("spatial", "contrast", "semantic")


class Sequenced(MapTransform, Randomizable):
    """Build the sequence of the kind that the item names.

    An item holds the scans under the keys, ``kind`` (one of ``KINDS``) and for semantic ones ``centre``; the sample
    holds the keys, each ``(C, *sample_size)`` float32 from 0 to 1, and ``kind`` as its index in ``KINDS``.

    Args:
        keys: one scan, or a list of four, see the transform of each kind.
        sample_size: the sample in voxels.
        slab_offset, slab_start: of spatial sequences, see :class:`SpatialSequenced`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sample_size: Sequence[int],
        slab_offset: int | None = None,
        slab_start: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys)
        self.sample_size = sample_size
        self.spatial = SpatialSequenced(keys, sample_size, slab_offset, slab_start)

    def build(self, kind: str) -> MapTransform:
        """The transform of a kind, drawing from this one's random state."""
        if kind == "contrast":
            return ContrastSequenced(self.keys, self.sample_size).set_random_state(state=self.R)
        if kind == "semantic":
            return SemanticSequenced(self.keys, self.sample_size)
        return self.spatial.set_random_state(state=self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        built = self.build(data["kind"])(data)
        result = {key: built[key] for key in self.key_iterator(built)}
        result["kind"] = torch.tensor(KINDS.index(data["kind"]))
        return result
