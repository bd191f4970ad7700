"""Semantic sequences: crops around four lesions (or structures) of one class (AR-SSL4M section 3)."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import torch

from digar.data.layouts import Case
from digar.data.lesions import lesion_cases
from digar.data.sequences.crops import NUM_PARTS, Scan, centred_window, part_size, stored
from digar.data.sequences.kind import SequenceKind
from digar.volumes.search import case_name


class Semantic(SequenceKind):
    """Four crops, each a quarter of the sample's slices thick and around a centre of its own, joined along z.

    Each part is scaled by its own 1 and 99.9 percentiles to 0..1. A crop that would leave its scan is moved inside; an
    axis shorter than the crop is taken whole and resized.

    Args:
        sample_size: the sample in voxels; its slices must be a multiple of 4.
        source: the table of lesions, see :func:`digar.data.lesions.lesion_cases`; None leaves the kind out.
    """

    option = "lesion_table"
    description = "crops around four lesions or structures of one class, joined along z"
    joins = NUM_PARTS

    def __init__(self, sample_size: Sequence[int], source: str | Path | None) -> None:
        super().__init__(sample_size, source)
        self.part_size = part_size(sample_size)

    def find(self, source: str | Path) -> list[Case]:
        return lesion_cases(source)

    def group(self, case: Case) -> Hashable:
        return case["type"]

    def build(
        self, scans: Sequence[Scan], centres: Sequence[np.ndarray], state: np.random.RandomState
    ) -> list[torch.Tensor]:
        """Raises ValueError where there are not four scans with a centre each."""
        if not len(scans) == len(centres) == NUM_PARTS:
            raise ValueError(
                f"a semantic sequence needs {NUM_PARTS} scans and centres, not {len(scans)} and {len(centres)}"
            )
        return [
            stored(scan, centred_window(scan.shape[1:], self.part_size, centre))
            for scan, centre in zip(scans, centres, strict=True)
        ]

    def part_names(self, joined: Sequence[Case]) -> list[str]:
        return [case_name(case["image"]) for case in joined]
