"""Contrast sequences: the same crop of the co-registered modalities of one study (AR-SSL4M section 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from digar.data.layouts import Case
from digar.data.sequences.crops import NUM_PARTS, Scan, part_size, random_window, stored
from digar.data.sequences.kind import SequenceKind
from digar.data.studies import incomplete_studies, study_cases


class Contrast(SequenceKind):
    """One random crop, a quarter of the sample's slices thick, of four modalities, joined along z.

    Each part is scaled by its own 1 and 99.9 percentiles to 0..1. An axis shorter than the crop is taken whole and
    resized.

    Args:
        sample_size: the sample in voxels; its slices must be a multiple of 4.
        source: the folder of studies, see :func:`digar.data.studies.study_cases`; None leaves the kind out.
        modalities: how the files of a study end.
    """

    option = "studies_dir"
    description = "the same crop in four contrasts, joined along z"

    def __init__(self, sample_size: Sequence[int], source: str | Path | None, modalities: Sequence[str]) -> None:
        super().__init__(sample_size, source)
        self.modalities = list(modalities)
        self.part_size = part_size(sample_size)

    def find(self, source: str | Path) -> list[Case]:
        return study_cases(source, self.modalities)

    def left_out(self, source: str | Path) -> list[tuple[str, str]]:
        return incomplete_studies(source, self.modalities)

    def build(
        self, scans: Sequence[Scan], centres: Sequence[np.ndarray], state: np.random.RandomState
    ) -> list[torch.Tensor]:
        """Raises ValueError where there are not four modalities on one grid."""
        shapes = [tuple(scan.shape) for scan in scans]
        if len(shapes) != NUM_PARTS or len(set(shapes)) > 1:
            raise ValueError(f"a contrast sequence needs {NUM_PARTS} modalities on one grid, not {shapes}")
        window = random_window(shapes[0][1:], self.part_size, state)
        return [stored(scan, window) for scan in scans]

    def part_names(self, joined: Sequence[Case]) -> list[str]:
        return self.modalities
