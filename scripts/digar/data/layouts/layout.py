"""What a data set is, whatever its layout, and what a layout does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from digar.volumes.reading import volume_exists
from digar.volumes.remote import is_remote

Case = dict[str, Any]
"""``image``: a path, or a list of one per channel; ``label``: a path; perhaps ``patient``, ``part``, ``fold``."""


@dataclass(frozen=True)
class DataSet:
    """The cases of a data set.

    Args:
        layout: its name.
        place: the folder or file that it was read from.
        labelled: cases with ``image`` and ``label``, in the order of the source.
        unlabelled: cases with ``image`` alone.
        channels: names, in order; empty where the data do not tell.
        labels: value to name, background left out; empty where the data do not tell.
    """

    layout: str
    place: Path
    labelled: Sequence[Case] = ()
    unlabelled: Sequence[Case] = ()
    channels: Sequence[str] = ()
    labels: Mapping[int, str] = field(default_factory=dict)

    def describe(self) -> str:
        """What was recognised, in a line."""
        parts = [f"{len(self.labelled)} labelled cases" if self.labelled else f"{len(self.unlabelled)} scans"]
        if self.labelled and self.unlabelled:
            parts.append(f"{len(self.unlabelled)} without labels")
        if self.channels:
            parts.append(f"channels {', '.join(self.channels)}")
        if self.labels:
            parts.append(f"labels {', '.join(f'{value} {name}' for value, name in self.labels.items())}")
        patients = {case["patient"] for case in self.labelled if case.get("patient")}
        if patients:
            parts.append(f"{len(patients)} patients")
        folds = {case["fold"] for case in self.labelled if case.get("fold") is not None}
        if folds:
            parts.append(f"{len(folds)} folds of their own")
        return f"{self.layout}: {'; '.join(parts)}"


class Layout(Protocol):
    """A way in which data lie on the disk."""

    name: str
    labelled: bool  # whether its cases can have labels

    def missing(self, place: Path) -> list[str]:
        """What ``place`` lacks to be in this layout, in sentences without a subject; nothing where it is."""
        ...

    def read(self, place: Path) -> DataSet:
        """The cases.

        Raises:
            FileNotFoundError: listed files are missing; all are named.
            ValueError: the description of the data contradicts itself; names the file and what to do.
        """
        ...


def refuse_missing(data: DataSet, labels: bool) -> None:
    """Refuse data whose files are not there; labels are looked for where they are needed, addresses not before use.

    Raises:
        FileNotFoundError: names all of them.
    """
    paths = [path for case in (*data.labelled, *data.unlabelled) for path in case_images(case)]
    paths += [case["label"] for case in data.labelled] if labels else []
    missing = [path for path in paths if not is_remote(path) and not volume_exists(path)]
    if missing:
        raise FileNotFoundError(f"{data.place} lists files that are missing: {', '.join(missing)}")


def case_images(case: Case) -> list[str]:
    """The files of a case's image, one per channel or one for all."""
    return [case["image"]] if isinstance(case["image"], str) else list(case["image"])


def label_names(source: Path, named: Any) -> dict[int, str]:
    """Labels as value to name, sorted by value, background (0) left out; names to values are turned round.

    Args:
        source: the file that names them.
        named: an object of either direction.

    Raises:
        ValueError: it is not such a file, a value is not a whole number, two names share a value, or a label is
            a region of several.
    """
    if not isinstance(named, dict):
        raise ValueError(f"{source}: 'labels' must be an object of values and names, it is {named!r}")
    labels: dict[int, str] = {}
    for key, other in named.items():
        value, name = (key, other) if _whole(key) is not None else (other, key)
        if isinstance(value, list):
            raise ValueError(
                f"{source}: label {name} is a region of the values {value}; regions cannot be trained on: give every "
                "value a name of its own"
            )
        number = _whole(value)
        if number is None or number < 0:
            raise ValueError(f"{source}: label {name} has the value {value!r}; a whole number from 0 on is needed")
        if str(name).strip().lower() == "ignore":
            raise ValueError(
                f"{source}: the label 'ignore' (value {number}) is not supported: fill it in, or leave those cases out"
            )
        if number in labels:
            raise ValueError(
                f"{source}: labels {labels[number]} and {name} share the value {number}: number them apart"
            )
        labels[number] = str(name)
    return {value: labels[value] for value in sorted(labels) if value}


def _whole(value: Any) -> int | None:
    """A whole number, or one written as text; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None
