"""Who is learned from, who tunes the rates and who is scored: by patient, class by class, all drawn by seed."""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digar.data.classified import classified_cases
from digar.data.datalists import labelled_cases
from digar.volumes.search import case_name

from benchmarks.experiments.protocol import Protocol, Split


@dataclass(frozen=True)
class Case:
    """A volume: its name, its files as the configs take them, its patient, and the patient's class, if it has one."""

    name: str
    files: dict[str, Any]
    patient: str
    group: str = ""
    part: str = ""  # training, validation or test, where the data bring their own


@dataclass(frozen=True)
class Parts:
    """Patients to learn from, to tune with and to score."""

    learn: list[str]
    tune: list[str]
    score: list[str]


def read_cases(protocol: Protocol, data: Path) -> list[Case]:
    """The cases of an experiment's data, in the data's order.

    Args:
        protocol: names the data within ``data``, the folder of all data.
    """
    path = data / protocol.data
    if protocol.split.given:
        found = classified_cases(path, protocol.ids["classes"], 0.0, 0)
        return [Case(c["name"], {}, c["name"], str(c["label"]), c["part"]) for c in found]
    groups = {}
    if protocol.table:
        with (path / protocol.table).open(newline="", encoding="utf-8") as stream:
            groups = {case_name(row["file"]): (row["patient"], row["class"]) for row in csv.DictReader(stream)}
    cases = []
    for files in labelled_cases(path):
        name = case_name(files["image"])
        cases.append(Case(name, files, *groups.get(name, (name,))))
    return cases


def in_turn(groups: Mapping[str, str], seed: int) -> list[str]:
    """Patients in random order, the classes in turn, so that any first part holds the classes about equally often.

    Args:
        groups: each patient's class.
        seed: draws the order.
    """
    generator = random.Random(seed)
    by_class: dict[str, list[str]] = {}
    for patient, group in sorted(groups.items()):
        by_class.setdefault(group, []).append(patient)
    queues = [generator.sample(patients, len(patients)) for patients in by_class.values()]
    generator.shuffle(queues)
    longest = max(len(queue) for queue in queues)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


def split_patients(cases: Sequence[Case], split: Split, draw: int = 0) -> Parts:
    """Who is learned from, who tunes and who is scored; with folds, those of the fold of this number."""
    if split.given:
        named = {part: [c.patient for c in cases if c.part == part] for part in ("training", "validation", "test")}
        return Parts(named["training"], named["validation"], named["test"])
    order = in_turn({case.patient: case.group for case in cases}, split.seed)
    first, end = 0, split.score
    if split.folds:  # neighbours in the order are of different classes
        first, end = (round(len(order) * number / split.folds) for number in (draw, draw + 1))
    score = order[first:end]
    others = [patient for patient in order if patient not in set(score)]
    return Parts(others[split.tune :], others[: split.tune], score)


def draw_labelled(cases: Sequence[Case], split: Split, labels: int | None, draw: int) -> list[str]:
    """The patients whose labels a run may use; a smaller number is part of a larger one of the same draw.

    A draw is another choice among the same patients; with folds it is a fold, and the choice is always the first.
    """
    learn = set(split_patients(cases, split, draw).learn)
    groups = {case.patient: case.group for case in cases if case.patient in learn}
    return in_turn(groups, 0 if split.folds else draw)[:labels]
