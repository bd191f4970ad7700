"""The samples of a pretraining epoch: the kinds mixed by weight, each sample drawn and built by its seed."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Compose
from torch.utils.data import Dataset

from digar.data.layouts import Case
from digar.data.seeded import derive_seed
from digar.data.sequences.kind import SequenceKind
from digar.volumes.prepared import VolumeStore, case_files, grids_differ

logger = logging.getLogger(__name__)


class SequenceDataset(Dataset[Any]):
    """Samples for next-patch pretraining: a function of (seed, epoch, index), independent of workers and processes.

    An epoch holds a fixed number of samples of each kind, by the kinds' weights. Over the epochs a kind goes through
    its cases in random order again and again, so that all are drawn equally often.

    Args:
        cases: see :func:`digar.data.sources.pretraining_cases`; those with a scan that ``volumes`` lacks are left out,
            and groups of fewer cases than a sample joins.
        kinds: by name.
        volumes: the prepared scans.
        transform: builds the sample, see :class:`digar.data.sequences.Sequenced`.
        seed: of the whole run.
        kind_weights: each kind's share of the samples, in any unit; one that is not named has none, with a warning.
        samples_per_epoch: None for as many as there are cases.

    Raises:
        ValueError: a weight is negative or of an unknown kind.
    """

    UNDECISIVE = ("cases", "groups", "epoch", "_orders")  # compared by themselves, see digar.networks.description

    def __init__(
        self,
        cases: Sequence[Case],
        kinds: Mapping[str, SequenceKind],
        volumes: VolumeStore,
        transform: Compose,
        seed: int,
        kind_weights: Mapping[str, float],
        samples_per_epoch: int | None = None,
    ) -> None:
        if set(kind_weights) - set(kinds) or any(weight < 0 for weight in kind_weights.values()):
            raise ValueError(
                f"kind_weights {dict(kind_weights)}: weights of {', '.join(kinds)}, at least 0, are wanted"
            )
        self.kinds = kinds
        self.volumes = volumes
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        self.cases: dict[str, list[Case]] = {}
        self.groups: dict[tuple[str, Hashable], list[Case]] = {}
        for name in kinds:
            own = [case for case in cases if case["kind"] == name]
            if own and name not in kind_weights:
                logger.warning(f"{name} sequences are left out: kind_weights names no weight for them")
            self.cases[name] = self._usable(name, own) if kind_weights.get(name, 0) > 0 else []
        num_cases = sum(map(len, self.cases.values()))
        total = num_cases if samples_per_epoch is None else samples_per_epoch
        weights = {name: kind_weights[name] for name, usable in self.cases.items() if usable}
        self.counts = divide(total if num_cases else 0, weights)
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def _usable(self, name: str, cases: Sequence[Case]) -> list[Case]:
        """The cases of a kind that are prepared, on one grid, and in a group of enough cases; their groups are kept."""
        kind, groups = self.kinds[name], dict[Hashable, list[Case]]()
        prepared = [case for case in cases if all(path in self.volumes for path in case_files(case))]
        prepared = [case for case in prepared if not grids_differ(case, self.volumes)]
        for case in prepared:
            groups.setdefault(kind.group(case), []).append(case)
        for group, members in groups.items():
            if len(members) >= kind.joins:
                self.groups[name, group] = members
            else:
                left_out = f"{name} cases of type {group} are left out"
                logger.warning(f"{left_out}: {len(members)}, and a sequence joins {kind.joins}")
        return [case for case in prepared if (name, kind.group(case)) in self.groups]

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
            generator = np.random.default_rng([self.seed, list(self.kinds).index(kind), passed])
            self._orders[kind, passed] = generator.permutation(len(self.cases[kind]))
        return self._orders[kind, passed]

    def draw(self, index: int) -> tuple[Case, list[Case], np.random.Generator]:
        """The case of a sample, the cases that it joins (itself first), and what drew them."""
        generator = np.random.default_rng([self.seed, self.epoch, index])
        case = self.case(index)
        kind = self.kinds[case["kind"]]
        return case, kind.draw(case, self.groups[case["kind"], kind.group(case)], generator), generator

    @property
    def data(self) -> list[dict[str, str]]:
        """The files of every sample of this epoch, joined by commas: what MONAI's datasets call their data."""
        joined = (self.draw(index)[1] for index in range(len(self)))
        return [{"image": ", ".join(path for case in cases for path in case_files(case))} for cases in joined]

    def __getitem__(self, index: int) -> Any:
        case, joined, generator = self.draw(index)
        item = {
            "kind": case["kind"],
            "image": [self.open(path, generator) for part in joined for path in case_files(part)],
            "centre": [self.volumes.voxel(part["image"], part["centre"]) for part in joined if "centre" in part],
        }
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
