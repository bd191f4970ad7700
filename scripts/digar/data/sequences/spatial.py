"""Spatial sequences: one crop of one scan (AR-SSL4M section 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from digar.data.datalists import scans
from digar.data.layouts import Case
from digar.data.sequences.crops import NUM_PARTS, Scan, part_size, random_window, read_crop, stored
from digar.data.sequences.kind import SequenceKind


class Spatial(SequenceKind):
    """A random crop of one scan, each channel scaled by its own 1 and 99.9 percentiles to 0..1.

    An axis shorter than the sample is taken whole and resized. With ``slab_offset`` the sample is built as published:
    four slabs of a quarter of its slices, at s, s + offset, s + 2 offset and s + 3 offset of the crop, joined along z
    (neighbouring slabs overlap, so part of the targets can be copied from earlier tokens); without it, it is the crop.

    Args:
        sample_size: the sample in voxels.
        source: data in any layout, see :func:`digar.data.datalists.scans`; None leaves the kind out.
        slab_offset: slices between the starts of neighbouring slabs; None for a contiguous crop.
        slab_start: smallest and largest s, in slices of the crop; None for all that fit.
        patient_pattern: see :func:`digar.data.splits.by_patient`.

    Raises:
        ValueError: slabs do not fit into the sample's slices.
    """

    option = "dataset_dir"
    description = "one crop of one scan"

    def __init__(
        self,
        sample_size: Sequence[int],
        source: str | Path | None,
        slab_offset: int | None = None,
        slab_start: Sequence[int] | None = None,
        patient_pattern: str | None = None,
    ) -> None:
        super().__init__(sample_size, source)
        self.patient_pattern = patient_pattern
        self.slab_offset = slab_offset
        if slab_offset is None:
            return
        self.description += ", as four published slabs"
        self.scales = True  # by the whole crop's percentiles, of which slabs repeat some slices and leave out others
        self.thickness = part_size(sample_size)[2]
        last = sample_size[2] - self.thickness - (NUM_PARTS - 1) * slab_offset
        self.starts = (0, last) if slab_start is None else tuple(slab_start)
        if slab_offset < 0 or len(self.starts) != 2 or not 0 <= self.starts[0] <= self.starts[1] <= last:
            raise ValueError(
                f"slab_offset {slab_offset} and slab_start {slab_start} do not fit: {NUM_PARTS} slabs of "
                f"{self.thickness} slices must lie within {sample_size[2]} slices"
            )

    def find(self, source: str | Path) -> list[Case]:
        return scans(source, self.patient_pattern)

    def build(
        self, scans: Sequence[Scan], centres: Sequence[np.ndarray], state: np.random.RandomState
    ) -> list[torch.Tensor]:
        (scan,) = scans
        window = random_window(scan.shape[1:], self.sample_size, state)
        if self.slab_offset is None:
            return [stored(scan, window)]
        start = state.randint(self.starts[0], self.starts[1] + 1)
        starts = [start + i * self.slab_offset for i in range(NUM_PARTS)]
        crop = read_crop(scan, window, self.sample_size)
        return [torch.cat([crop[..., s : s + self.thickness] for s in starts], dim=3)]

    def part_names(self, joined: Sequence[Case]) -> list[str]:
        if self.slab_offset is None:
            return []
        return [f"slab {part}: from s + {part * self.slab_offset}" for part in range(NUM_PARTS)]

    def copied_patches(self, patch_size: Sequence[int]) -> torch.Tensor:
        """Patch k of slab i begins ``i * offset + k * depth`` slices after s.

        Two that begin alike at the same (x, y) are the same voxels, and the one in the later slab comes later in either
        token order.
        """
        t, h, w = (n // p for n, p in zip(self.sample_size, patch_size, strict=True))
        copied = torch.zeros(w, dtype=torch.bool)
        depth = patch_size[2]
        if self.slab_offset is not None and self.thickness % depth == 0:  # else patches lie across two slabs
            seen: set[int] = set()
            for index in range(w):
                slab, patch = divmod(index, self.thickness // depth)
                begin = slab * self.slab_offset + patch * depth
                copied[index] = begin in seen
                seen.add(begin)
        return copied.expand(t, h, w).flatten()
