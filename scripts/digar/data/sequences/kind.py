"""What a kind of pretraining sequence is: it finds its cases, draws those of a sample, and builds the sample."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform

from digar.data.layouts import Case
from digar.data.sequences.crops import Scan
from digar.data.sequences.parts import join_parts


class SequenceKind(ABC):
    """A kind of sequence, under a name of its own in ``kinds`` of ``configs/pretrain.yaml``.

    Args:
        sample_size: the sample in voxels, ``(X, Y, Z)``.
        source: the folder or table where its cases are; None leaves the kind out.
    """

    option: str  # the config's id for the source, which errors name
    description: str  # of a sequence, for the title of its picture
    joins = 1  # cases in a sample
    scales = False  # whether build gives the sample resized and scaled
    UNDECISIVE = ("source", "patient_pattern")  # of a sample: its cases are, see digar.networks.description

    def __init__(self, sample_size: Sequence[int], source: str | Path | None) -> None:
        x, y, z = (int(n) for n in sample_size)
        self.sample_size = (x, y, z)
        self.source = source

    @abstractmethod
    def find(self, source: str | Path) -> list[Case]:
        """All cases: ``image``, a path or several; perhaps ``patient``, and ``centre`` in voxels of the image."""

    def left_out(self, source: str | Path) -> list[tuple[str, str]]:
        """What :meth:`find` leaves out: file or folder, and the reason, each."""
        return []

    def group(self, case: Case) -> Hashable:
        """A sample joins cases of one group; a group of fewer than ``joins`` cases is left out."""
        return None

    def draw(self, case: Case, group: Sequence[Case], generator: np.random.Generator) -> list[Case]:
        """The cases that the sample of a case joins: itself, then others of its group."""
        if self.joins == 1:
            return [case]
        others = [other for other in group if other is not case]
        return [case, *(others[i] for i in generator.choice(len(others), self.joins - 1, replace=False))]

    @abstractmethod
    def build(
        self, scans: Sequence[Scan], centres: Sequence[np.ndarray], state: np.random.RandomState
    ) -> list[torch.Tensor]:
        """The sample's parts along z, of equal thickness, ``(C, X, Y, Z)`` each, in their scans' own numbers.

        :func:`prepare_next_patch` resizes parts that are smaller than their share of the sample, and scales each.

        Args:
            scans: of all files of the cases that it joins, ``(C, X, Y, Z)`` each; perhaps memory-mapped, not to be
                changed.
            centres: of those cases that have one, in voxels of their scans.
            state: draws what is random.
        """

    def part_names(self, joined: Sequence[Case]) -> list[str]:
        """Names of the sample's parts along z, for its picture; none where it is of one piece."""
        return []

    def copied_patches(self, patch_size: Sequence[int]) -> torch.Tensor:
        """Which patches equal an earlier one by construction, ``(N,)`` bool in raster order (last axis fastest)."""
        t, h, w = (n // p for n, p in zip(self.sample_size, patch_size, strict=True))
        return torch.zeros(t * h * w, dtype=torch.bool)


class Sequenced(Transform, Randomizable):
    """Build the sequence of the kind that an item names: ``image`` as stored, ``kind`` as its place among the kinds.

    ``extents`` are those of its parts, see :func:`join_parts`.

    An item holds ``kind`` (a name), ``image`` (the scans) and ``centre``, see :meth:`SequenceKind.build`.

    Args:
        kinds: by name.
    """

    def __init__(self, kinds: Mapping[str, SequenceKind]) -> None:
        self.kinds = kinds

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        name = data["kind"]
        kind = self.kinds[name]
        image, extents = join_parts(kind.build(data["image"], data["centre"], self.R), kind.sample_size)
        if kind.scales:
            extents.zero_()
        return {"image": image, "kind": torch.tensor(list(self.kinds).index(name)), "extents": extents}
