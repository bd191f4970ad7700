"""Which cases are held out, and which of the others are trained on: always by patient."""

import os
import random
import re
from collections.abc import Sequence

from digar.data.layouts import Case
from digar.data.layouts.layout import case_images
from digar.volumes.search import case_name, case_names

PATIENTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(sub-[A-Za-z0-9]+)[_\-.].+",  # BIDS, sub-01_ses-2_T1w: patient sub-01
        r"(BraTS-[A-Za-z]+-\d+)-\d{3}(?:[_\-.].*)?",  # BraTS-GLI-00005-100: the timepoint 100 of BraTS-GLI-00005
        r"(.*?\d)(?:[_\-.][A-Za-z][A-Za-z0-9]*)+",  # acdc_001_ed: patient acdc_001
    )
)
PARTS = ("training", "validation", "test")
Split = dict[str, list[Case]]  # by part


def by_patient(cases: Sequence[Case], pattern: str | None = None) -> list[Case]:
    """The cases with their ``patient``: told by the data, else by the pattern, else read off the names of images.

    A name whose last parts begin with letters behind a number is one of several images of a patient: ``acdc_001_ed``
    and ``acdc_001_es`` are of ``acdc_001``; ``hippocampus_001`` is a patient of its own. Sessions of BIDS and
    timepoints of BraTS are of one patient too. Where the same few names, or names without a number, stand in several
    folders (``case1/t1``, ``case2/t1``) the folder is the patient.

    Args:
        cases: with ``image``.
        pattern: a regular expression whose first group, or whole match, is the patient in an image's path.

    Raises:
        ValueError: an image is there twice, also by another spelling of its path; or the pattern is no regular
            expression, or does not match a path.
    """
    paths = [case_images(case)[0] for case in cases]
    _refuse_twice([path for case in cases for path in case_images(case)])
    names = _named_by(pattern, paths) if pattern is not None else _read_off(paths)
    return [{**case, "patient": str(case.get("patient") or name)} for case, name in zip(cases, names, strict=True)]


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            other = "" if seen[real] == path else f" (also as {seen[real]})"
            raise ValueError(f"image {path} is listed twice{other}: list it once")
        seen[real] = path


def _named_by(pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient_pattern {pattern!r} is not a regular expression: {error}") from None
    names = []
    for path in paths:
        match = expression.search(path)
        if match is None:
            raise ValueError(f"patient_pattern {pattern!r} does not match {path}: correct it")
        names.append(match[1] if expression.groups else match[0])
    return names


def _read_off(paths: Sequence[str]) -> list[str]:
    names = [name.rpartition("/") for name in case_names(paths)]
    folders, stems = {folder for folder, _, _ in names}, {stem for _, _, stem in names}
    numbered = any(character.isdigit() for stem in stems for character in stem)
    if len(folders) > 1 and (len(stems) < len(folders) or not numbered):
        return [folder for folder, _, _ in names]
    return [folder + slash + _patient(stem) for folder, slash, stem in names]


def _patient(stem: str) -> str:
    matches = (pattern.fullmatch(stem) for pattern in PATIENTS)
    return next((match[1] for match in matches if match), stem)


def describe_patients(cases: Sequence[Case]) -> str:
    """How many patients there are, with an example of one that has several cases."""
    cases_of: dict[str, list[Case]] = {}
    for case in cases:
        cases_of.setdefault(str(case["patient"]), []).append(case)
    text = f"{len(cases)} cases of {len(cases_of)} patients"
    several = next((name for name, own in cases_of.items() if len(own) > 1), None)
    if several is None:
        return text
    names = ", ".join(case_name(case_images(case)[0]) for case in cases_of[several][:3])
    return f"{text} ({several}: {names}{', ...' if len(cases_of[several]) > 3 else ''}); a patient is never divided"


def split_cases(cases: Sequence[Case], validation_share: float, seed: int, part: str, fold: int = 0) -> list[Case]:
    """The training or the validation part of the cases.

    Where cases have a ``part`` of their own, that is the split; where they have a ``fold``, that fold is held out; else
    patients are drawn with a fixed seed. A case without a patient is one of its own.

    Args:
        cases: all cases.
        validation_share: share held out, in [0, 1); at least one patient where it is positive, none where it is 0.
        seed: draws the split; the same for pretraining and fine-tuning keeps held-out images unseen in both.
        part: ``training``, ``validation``, ``test`` (where the data have such a part) or ``all``.
        fold: which share of the shuffled patients is held out: 0, 1, ... below ``1 / validation_share``. With a share
            of 0.2 every case is held out in one of five folds.

    Raises:
        ValueError: the share, the fold or the part is not one of these, or nothing is left to train on.
    """
    if part not in (*PARTS, "all"):
        raise ValueError(f"part {part!r} must be training, validation, test or all")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share {validation_share} must be at least 0 and below 1")
    if part == "all":
        return list(cases)
    patients = [str(case.get("patient") or number) for number, case in enumerate(cases)]
    parts = _own_parts(cases, validation_share, fold)
    if part == "test" and "test" not in (parts or ()):
        raise ValueError("part 'test': the data come without such a part: pass validation, training or all")
    if parts is None:
        held_out = draw_patients(list(dict.fromkeys(patients)), validation_share, seed, fold)
        parts = ["validation" if patient in held_out else "training" for patient in patients]
    _refuse_divided_patients(patients, parts)
    return [case for case, own in zip(cases, parts, strict=True) if own == part]


def fold_numbers(cases: Sequence[Case], validation_share: float) -> list[int]:
    """The folds of a cross-validation: those that the data come with, else as many as the share makes.

    Raises:
        ValueError: the data bring a split of their own, or the share holds nothing out.
    """
    if any(case.get("part") for case in cases):
        raise ValueError("the data come with a training and a validation part, not with folds: train without --folds")
    own = {case["fold"] for case in cases if case.get("fold") is not None}
    if not own and not 0 < validation_share < 1:
        raise ValueError(f"validation_share {validation_share} makes no folds: set one such as 0.2")
    return sorted(own) or list(range(int(1 / validation_share + 1e-9)))


def draw_patients(patients: Sequence[str], validation_share: float, seed: int, fold: int) -> set[str]:
    """The patients that are held out; see :func:`split_cases`."""
    if fold < 0 or (fold and not 0 < (fold + 1) * validation_share < 1 + 1e-9):
        raise ValueError(f"fold {fold}: with validation_share {validation_share} there is no such fold")
    order = list(patients)
    random.Random(seed).shuffle(order)
    first, end = (round(len(order) * validation_share * number) for number in (fold, fold + 1))
    held_out = set(order[first : max(end, first + 1)]) if validation_share else set()
    if len(held_out) >= len(order):
        raise ValueError(
            f"{len(order)} patients and validation_share {validation_share} leave none to train on: "
            "add cases, or pass --validation_share 0"
        )
    return held_out


def _own_parts(cases: Sequence[Case], validation_share: float, fold: int) -> list[str] | None:
    """The part of every case where the data come with a split; None where they do not."""
    if any(case.get("part") for case in cases):
        return [case.get("part") or "training" for case in cases]
    folds = {case["fold"] for case in cases if case.get("fold") is not None}
    if not folds:
        return None
    if fold not in folds:
        raise ValueError(f"fold {fold}: the data come with the folds {', '.join(map(str, sorted(folds)))}")
    held_out = [case.get("fold") == fold and validation_share > 0 for case in cases]
    return ["validation" if held else "training" for held in held_out]


def _refuse_divided_patients(patients: Sequence[str], parts: Sequence[str]) -> None:
    own: dict[str, str] = {}
    for patient, part in zip(patients, parts, strict=True):
        if own.setdefault(patient, part) != part:
            raise ValueError(
                f"patient {patient} is in the {own[patient]} and in the {part} part of the data's own split: correct "
                "the split, or the column patient"
            )


def label_subset(cases: Sequence[Case], label_ratio: float, seed: int) -> list[Case]:
    """A share of the labelled training patients (at least one), drawn with a fixed seed; smaller shares are nested.

    Raises:
        ValueError: ``label_ratio`` outside (0, 1].
    """
    if not 0 < label_ratio <= 1:
        raise ValueError(f"label_ratio {label_ratio} must be above 0 and at most 1")
    patients = [str(case.get("patient") or number) for number, case in enumerate(cases)]
    order = list(dict.fromkeys(patients))
    random.Random(seed).shuffle(order)
    kept = set(order[: max(round(len(order) * label_ratio), 1)])
    return [case for case, patient in zip(cases, patients, strict=True) if patient in kept]


def part_of(split: Split, part: str) -> list[Case]:
    """The cases of one part of a split.

    Raises:
        ValueError: it has no such part.
    """
    if part not in split:
        raise ValueError(f"part {part!r} must be one of {', '.join(split)}: the data have no other")
    return split[part]
