"""What a pretraining run learns from: scans, studies and lesions, split by patient, mixed and drawn by seed."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from digar.data.datalists import Case, scans, split_cases
from digar.data.lesions import lesion_cases
from digar.data.seeded import derive_seed
from digar.data.sequences.building import KINDS
from digar.data.sequences.crops import NUM_SLABS
from digar.data.studies import study_cases
from digar.volumes.prepared import VolumeStore, case_files, grids_differ

logger = logging.getLogger(__name__)


def pretraining_cases(
    dataset_dir: str | None, studies_dir: str | None, modalities: Sequence[str], lesion_table: str | None
) -> list[Case]:
    """All cases of the sources that are given: each has ``kind`` and ``image`` (a path, or four).

    Args:
        dataset_dir: a folder of scans or an MSD task, see :func:`digar.data.datalists.scans`: spatial sequences.
        studies_dir, modalities: see :func:`digar.data.studies.study_cases`: contrast sequences.
        lesion_table: see :func:`digar.data.lesions.lesion_cases`: semantic sequences.

    Raises:
        ValueError: no source is given.
    """
    if dataset_dir is None and studies_dir is None and lesion_table is None:
        raise ValueError("there is nothing to learn from: pass --dataset_dir, --studies_dir or --lesion_table")
    cases: list[Case] = [] if dataset_dir is None else [{"kind": "spatial", **case} for case in scans(dataset_dir)]
    if studies_dir is not None:
        cases += study_cases(studies_dir, modalities)
    if lesion_table is not None:
        cases += lesion_cases(lesion_table)
    return cases


def split_by_patient(cases: Sequence[Case], validation_share: float, seed: int, part: str, fold: int = 0) -> list[Case]:
    """The training or the validation part of pretraining cases: one patient is never in both, whatever the kinds.

    Cases belong to one patient where they share a file or a patient's name. Scans are split first, exactly as
    :func:`split_cases` splits them in fine-tuning; then the patients that only studies have, then those of lesions.

    Args:
        cases, validation_share, seed, part, fold: see :func:`split_cases`.
    """
    if part == "all" or not 0 <= validation_share < 1:
        return split_cases(cases, validation_share, seed, part, fold)
    patients = _patients(cases)
    validation: set[str] = set()
    decided: set[str] = set()
    for kind in KINDS:
        names = dict.fromkeys(name for name, case in zip(patients, cases, strict=True) if case["kind"] == kind)
        undecided = [{"patient": name} for name in names if name not in decided]
        if len(undecided) > 1 or (undecided and not decided):
            held_out = split_cases(undecided, validation_share, seed, "validation", fold)
            validation.update(case["patient"] for case in held_out)
        decided.update(names)
    return [case for name, case in zip(patients, cases, strict=True) if (name in validation) == (part == "validation")]


def _patients(cases: Sequence[Case]) -> list[str]:
    """One name per case, alike for cases that share a file or a patient, directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    names = []
    for case in cases:
        own = [os.path.abspath(path) for path in case_files(case)]
        own += [f"patient {case['patient']}"] if "patient" in case else []
        for name in own[1:]:
            parent[root(own[0])] = root(name)
        names.append(own[0])
    return [root(name) for name in names]


class SequenceDataset(Dataset):
    """Samples for next-patch pretraining: a function of (seed, epoch, index), whatever the workers and processes.

    An epoch holds a fixed number of samples of each kind, by the kinds' weights. Over the epochs a kind goes through
    its cases in random order again and again, so that all are drawn equally often. A semantic sample joins its lesion
    with three others of its class, drawn from this dataset.

    Args:
        cases: see :func:`pretraining_cases`; those with a scan that ``volumes`` lacks are left out, and classes with
            fewer than four lesions.
        volumes: the prepared scans.
        transform: builds the sample, see :class:`digar.data.sequences.Sequenced`.
        seed: of the whole run.
        kind_weights: each kind's share of the samples, in any unit; a kind without cases has none.
        samples_per_epoch: None for as many as there are cases.

    Raises:
        ValueError: a weight is negative or of an unknown kind.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        volumes: VolumeStore,
        transform: Callable[[dict], Any],
        seed: int,
        kind_weights: Mapping[str, float],
        samples_per_epoch: int | None = None,
    ) -> None:
        unknown = set(kind_weights) - set(KINDS)
        if unknown or any(weight < 0 for weight in kind_weights.values()):
            raise ValueError(
                f"kind_weights {dict(kind_weights)}: weights of {', '.join(KINDS)}, at least 0, are wanted"
            )
        self.volumes = volumes
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        usable = [case for case in cases if all(path in volumes for path in case_files(case))]
        usable = [case for case in usable if kind_weights.get(case["kind"], 0) > 0 and not grids_differ(case, volumes)]
        sizes = Counter(case["type"] for case in usable if case["kind"] == "semantic")
        for name, size in sizes.items():
            if size < NUM_SLABS:
                logger.warning(f"lesions of type {name} are left out: {size}, and a sequence joins {NUM_SLABS}")
        usable = [case for case in usable if case["kind"] != "semantic" or sizes[case["type"]] >= NUM_SLABS]
        self.cases = {kind: [case for case in usable if case["kind"] == kind] for kind in KINDS}
        self.classes: dict[str, list[Case]] = {}
        for case in self.cases["semantic"]:
            self.classes.setdefault(case["type"], []).append(case)
        total = len(usable) if samples_per_epoch is None else samples_per_epoch
        self.counts = divide(total if usable else 0, {k: kind_weights[k] for k in KINDS if self.cases[k]})
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def set_epoch(self, epoch: int) -> None:
        """Draw the samples of this epoch from now on; without it (validation) every pass is alike."""
        self.epoch = epoch

    def case(self, index: int) -> Case:
        """The case that sample ``index`` of this epoch is built from."""
        for kind, count in self.counts.items():
            if index < count:
                passed, place = divmod(self.epoch * count + index, len(self.cases[kind]))
                return self.cases[kind][self._order(kind, passed)[place]]
            index -= count
        raise IndexError("index out of range")

    def _order(self, kind: str, passed: int) -> np.ndarray:
        """The random order in which a kind's cases are gone through the ``passed``-th time."""
        if (kind, passed) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key == (kind, passed - 1)}
            generator = np.random.default_rng([self.seed, KINDS.index(kind), passed])
            self._orders[kind, passed] = generator.permutation(len(self.cases[kind]))
        return self._orders[kind, passed]

    def draw(self, index: int) -> tuple[Case, list[Case], np.random.Generator]:
        """The case of a sample, the cases it joins (three other lesions of the class beside it), and what drew them."""
        generator = np.random.default_rng([self.seed, self.epoch, index])
        case = self.case(index)
        if case["kind"] != "semantic":
            return case, [case], generator
        others = [other for other in self.classes[case["type"]] if other is not case]
        chosen = generator.choice(len(others), NUM_SLABS - 1, replace=False)
        return case, [case, *(others[i] for i in chosen)], generator

    @property
    def data(self) -> list[dict[str, str]]:
        """The files of every sample of this epoch, joined by commas: what MONAI's datasets call their data."""
        joined = (self.draw(index)[1] for index in range(len(self)))
        return [{"image": ", ".join(path for case in cases for path in case_files(case))} for cases in joined]

    def __getitem__(self, index: int) -> Any:
        case, joined, generator = self.draw(index)
        files = [path for part in joined for path in case_files(part)]
        scans = [self.open(path, generator) for path in files]
        item = {"kind": case["kind"], "image": scans[0] if case["kind"] == "spatial" else scans}
        if case["kind"] == "semantic":
            item["centre"] = [self.volumes.voxel(lesion["image"], lesion["centre"]) for lesion in joined]
        self.transform.set_random_state(seed=derive_seed(self.seed, self.epoch, index))
        return self.transform(item)

    def open(self, path: str, generator: np.random.Generator) -> np.ndarray:
        """A prepared scan with the network's channels; where that takes one of several, a random one."""
        volume = self.volumes.open(path)
        if volume.shape[0] == self.volumes.in_channels:
            return volume
        channel = int(generator.integers(volume.shape[0]))
        return volume[channel : channel + 1]


def divide(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """A total divided in whole numbers by weights: rounded down, what is left to the largest remainders."""
    shares = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: int(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda name: counts[name] - shares[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
