"""What a pretraining run learns from: the cases of all kinds of sequence, split by patient."""

import os
from collections.abc import Mapping, Sequence

from digar.data.layouts import Case
from digar.data.sequences.kind import SequenceKind
from digar.data.splits import Split, split_cases
from digar.volumes.prepared import case_files


def pretraining_cases(kinds: Mapping[str, SequenceKind]) -> list[Case]:
    """All cases of the kinds whose source is given, each with its ``kind``.

    Raises:
        ValueError: no source is given.
    """
    if all(kind.source is None for kind in kinds.values()):
        options = [f"--{kind.option}" for kind in kinds.values()]
        raise ValueError(f"there is nothing to learn from: pass {', '.join(options[:-1])} or {options[-1]}")
    return [
        {**case, "kind": name}
        for name, kind in kinds.items()
        if kind.source is not None
        for case in kind.find(kind.source)
    ]


def left_out_cases(kinds: Mapping[str, SequenceKind]) -> list[tuple[str, str]]:
    """What :func:`pretraining_cases` leaves out: file or folder, and the reason, each."""
    return [row for kind in kinds.values() if kind.source is not None for row in kind.left_out(kind.source)]


def pretraining_split(kinds: Mapping[str, SequenceKind], validation_share: float, seed: int, fold: int = 0) -> Split:
    """The cases of the kinds by part, ``training``, ``validation`` and ``all``: see :func:`split_by_patient`."""
    cases = pretraining_cases(kinds)
    parts = ("training", "validation", "all")
    return {part: split_by_patient(cases, validation_share, seed, part, fold) for part in parts}


def split_by_patient(cases: Sequence[Case], validation_share: float, seed: int, part: str, fold: int = 0) -> list[Case]:
    """The training or the validation part of pretraining cases: a patient is never in both, even across kinds.

    Cases belong to one patient where they share a file or a patient's name. Scans with labels are split first,
    exactly as in fine-tuning (:func:`split_cases`); then patients of scans without, then those that only the next kind
    has.

    Args:
        cases, validation_share, seed, part, fold: see :func:`split_cases`.
    """
    if part == "all" or not 0 <= validation_share < 1:
        return split_cases(cases, validation_share, seed, part, fold)
    patients = _patients(cases)
    validation: set[str] = set()
    decided: set[str] = set()
    groups = [(case["kind"], "label" in case) for case in cases]
    for group in sorted(dict.fromkeys(groups), key=lambda group: not group[1]):  # labelled first, as in fine-tuning
        own: dict[str, Case] = {}
        for name, case, other in zip(patients, cases, groups, strict=True):
            if other == group and name not in decided:
                own.setdefault(name, {**case, "patient": name})
        if len(own) > 1 or (own and not decided):
            held_out = split_cases(list(own.values()), validation_share, seed, "validation", fold)
            validation.update(case["patient"] for case in held_out)
        decided.update(own)
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
