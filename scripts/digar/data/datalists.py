"""Which cases a run uses, from data in any layout, and their check before the run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from tqdm import tqdm

from digar.data.facts import CaseFacts, case_facts
from digar.data.layouts import Case, DataSet, read_data
from digar.data.layouts.layout import case_images
from digar.data.layouts.msd import MsdTask
from digar.data.splits import Split, by_patient, describe_patients, label_subset, split_cases
from digar.data.task import label_name, unnamed
from digar.volumes.checks import MEMORY_LEFT, WARNINGS, TooLargeError
from digar.volumes.header import VolumeError
from digar.volumes.memory import available_memory
from digar.volumes.reading import VOLUME_SUFFIXES
from digar.volumes.search import case_names, find_volumes

READERS = 4  # at once; each holds a whole case

logger = logging.getLogger(__name__)


def labelled_cases(dataset_dir: str | Path, patient_pattern: str | None = None) -> list[Case]:
    """The labelled cases of data in any layout, in its order: ``image``, ``label``, ``patient``, ``name``.

    Names are those of :func:`digar.volumes.search.case_names`, so that ``case1/image`` and ``case2/image`` are two.

    Args:
        dataset_dir: see :func:`digar.data.layouts.read_data`.
        patient_pattern: see :func:`digar.data.splits.by_patient`.

    Raises:
        FileNotFoundError, ValueError: see these functions.
    """
    return _named_cases(read_data(dataset_dir, labelled=True), patient_pattern)


def _named_cases(data: DataSet, patient_pattern: str | None) -> list[Case]:
    if data.unlabelled and data.layout == MsdTask.name:  # its list is of cases to train on
        images = ", ".join(case["image"] for case in data.unlabelled)
        raise ValueError(f"{data.place / 'dataset.json'} lists images without a label: {images}")
    cases = by_patient(data.labelled, patient_pattern)
    names = case_names([case_images(case)[0] for case in cases])
    return [{**case, "name": name} for case, name in zip(cases, names, strict=True)]


def scans(dataset_dir: str | Path, patient_pattern: str | None = None) -> list[Case]:
    """The images of data in any layout, as scans to pretrain on: ``image`` (a path), ``patient``.

    Those with a label come first, in the order of :func:`labelled_cases`, so that one seed splits both alike and images
    held out in fine-tuning are held out in pretraining too. Labels are not looked for. Channels in files of their own
    are scans of their own.

    Args:
        dataset_dir, patient_pattern: see :func:`labelled_cases`.

    Raises:
        FileNotFoundError, ValueError: see :func:`labelled_cases`.
    """
    data = read_data(dataset_dir)
    return [
        {**{key: case[key] for key in ("patient", "part", "fold", "label") if key in case}, "image": path}
        for case in by_patient([*data.labelled, *data.unlabelled], patient_pattern)
        for path in case_images(case)
    ]


def image_files(folder: str | Path) -> list[Path]:
    """All volumes of a folder and its sub-folders, see :func:`digar.volumes.search.find_volumes`.

    Raises:
        FileNotFoundError: there is no such folder, or no volume in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = find_volumes(folder)
    if not found:
        raise FileNotFoundError(f"{folder} contains no image ({', '.join(VOLUME_SUFFIXES)} or DICOM series)")
    return [Path(path) for path in found]


def labelled_split(
    dataset_dir: str | Path,
    labels: Mapping[int, str],
    validation_share: float,
    seed: int,
    fold: int = 0,
    label_ratio: float = 1.0,
    label_seed: int = 0,
    patient_pattern: str | None = None,
    task_chosen: bool = True,
) -> Split:
    """The labelled cases of data in any layout: ``training``, ``validation``, ``test`` where there is one, ``all``.

    Args:
        dataset_dir: see :func:`digar.data.layouts.read_data`.
        labels: of the network, by value.
        validation_share, seed, fold: what is held out, see :func:`split_cases`.
        label_ratio: share of the training patients that is used; see :func:`label_subset`.
        label_seed: draws that share, apart from the split, so that several draws keep the same cases held out.
        patient_pattern: see :func:`digar.data.splits.by_patient`.
        task_chosen: see :func:`check_labels`.

    Raises:
        FileNotFoundError: see :func:`labelled_cases`.
        ValueError: see these functions and :func:`check_labels`.
    """
    data = read_data(dataset_dir, labelled=True)
    _check_labels(data.labels, dataset_dir, labels, task_chosen)
    cases = _named_cases(data, patient_pattern)
    logger.info("%s; %s", data.describe(), describe_patients(cases))
    test = ["test"] * any(case.get("part") == "test" for case in cases)
    parts = ("training", "validation", *test, "all")
    split = {part: split_cases(cases, validation_share, seed, part, fold) for part in parts}
    return {**split, "training": label_subset(split["training"], label_ratio, label_seed)}


def check_labels(dataset_dir: str | Path, labels: Mapping[int, str], chosen: bool = True) -> None:
    """Refuse data whose labels are not those that the network learns or has learned; names alone are warned of.

    Args:
        dataset_dir: the data.
        labels: of the network, by value.
        chosen: somebody chose the task that has these labels; False refuses data that call all of them otherwise.

    Raises:
        ValueError: another number of labels, or names of the network for other values; tells both, and what to do.
    """
    _check_labels(read_data(dataset_dir, labelled=True).labels, dataset_dir, labels, chosen)


def _check_labels(theirs: Mapping[int, str], dataset_dir: str | Path, labels: Mapping[int, str], chosen: bool) -> None:
    remedy = f"write a task for these data (digar plan {dataset_dir} -o task.yaml) and pass --task task.yaml"
    if not labels:
        raise ValueError(f"the task of this run names no labels: {remedy}")
    if not theirs:
        return
    both = f"{dataset_dir} has the labels {_listed(theirs)}"
    if max(theirs) != max(labels):
        raise ValueError(f"{both}, num_classes is {max(labels) + 1}: {remedy}, or pass --num_classes {max(theirs) + 1}")
    ours = {value: name.casefold() for value, name in labels.items() if name != unnamed(value)}
    places = {name.casefold(): value for value, name in theirs.items()}
    other = [value for value, name in ours.items() if places.get(name) != value]
    swapped = any(ours[value] in places for value in other)
    if swapped or (other and len(other) == len(ours) and not chosen):
        raise ValueError(f"{both}, the network {_listed(labels)}: {remedy}")
    if other:
        logger.warning("%s, the task calls them %s: its names are taken", both, _listed(labels))


def _listed(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())


def label_names(dataset_dir: str | Path, labels: Mapping[int, str]) -> list[str]:
    """The names of the labels 1, 2, ... of data: their own, else those of the network.

    Raises:
        ValueError: see :func:`check_labels`.
    """
    theirs = read_data(dataset_dir, labelled=True).labels
    _check_labels(theirs, dataset_dir, labels, chosen=True)
    names = {**labels, **theirs}
    return [label_name(names, value) for value in range(1, max(names) + 1)]


def check_cases(cases: Sequence[Case], load: Callable[[Case], Mapping[Any, Any]]) -> list[CaseFacts]:
    """Read every labelled case before a run as the run will read it; what is odd about a case is logged.

    Args:
        cases: ``{"image": path, "label": path}``.
        load: the run's :class:`digar.volumes.checks.CheckedLoadImaged`.

    Returns:
        What the cases are like, in their order.

    Raises:
        ValueError: there is no case; or it names every case that cannot be used, and why.
    """
    if not cases:
        raise ValueError("there is no labelled case to work on: label one first")

    def attempt(case: Case, at_once: int = READERS) -> CaseFacts | VolumeError:
        try:
            loaded = load({**case, MEMORY_LEFT: available_memory() / at_once})
        except VolumeError as error:
            return error
        image = loaded["image"]
        for warning in image.meta[WARNINGS]:
            logger.warning("%s: %s", image.meta["filename_or_obj"], warning)
        label = loaded["label"]
        return case_facts(image, label if isinstance(label, MetaTensor) else None)  # that of a classification: a number

    with ThreadPool(READERS) as pool:
        results = list(tqdm(pool.imap(attempt, cases), total=len(cases), desc="checking cases", leave=False, delay=3))
    results = [  # alone it may find room
        attempt(case, at_once=1) if isinstance(result, TooLargeError) else result
        for case, result in zip(cases, results, strict=True)
    ]
    problems = [str(result) for result in results if isinstance(result, VolumeError)]
    if problems:
        raise ValueError(f"{len(problems)} of {len(cases)} cases cannot be used:\n" + "\n".join(problems))
    return [result for result in results if not isinstance(result, VolumeError)]
