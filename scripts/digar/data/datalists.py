"""Which files a run uses: labelled MSD tasks, folders of scans, the split by case, and their check before a run."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from tqdm import tqdm

from digar.data.facts import CaseFacts, case_facts
from digar.data.layouts import read_data
from digar.data.task import unnamed
from digar.volumes.checks import WARNINGS
from digar.volumes.files import read_json
from digar.volumes.header import VolumeError
from digar.volumes.reading import VOLUME_SUFFIXES, volume_exists
from digar.volumes.search import find_volumes

Case = dict[str, Any]
READERS = 4  # at once; each holds a whole case

logger = logging.getLogger(__name__)


def _existing_folder(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"dataset_dir {path} is not a folder: pass --dataset_dir with the folder of your data")
    return path


def read_task(dataset_dir: str | Path) -> dict:
    """The content of an MSD task's ``dataset.json``.

    Raises:
        FileNotFoundError: there is no such folder, or no ``dataset.json`` in it.
        ValueError: the file is not JSON, or holds no object.
    """
    folder = _existing_folder(dataset_dir)
    file = folder / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is no MSD task: it has no dataset.json (a task holds dataset.json, imagesTr and labelsTr)"
        )
    return read_json(file, dict)


def _task_entries(folder: Path) -> list:
    entries = read_task(folder).get("training", [])
    if not entries:
        raise ValueError(f"{folder / 'dataset.json'} lists no case under 'training': there is nothing to learn from")
    return entries


def _refuse_missing(folder: Path, cases: Sequence[Case]) -> None:
    missing = [path for case in cases for path in case.values() if not volume_exists(path)]
    if missing:
        raise FileNotFoundError(f"{folder / 'dataset.json'} lists files that are missing: {', '.join(missing)}")


def labelled_cases(dataset_dir: str | Path) -> list[Case]:
    """The labelled cases of an MSD task: ``{"image": path, "label": path}``, in the order of ``dataset.json``.

    Raises:
        FileNotFoundError: the folder, its ``dataset.json``, an image or a label is missing; all are named.
        ValueError: the task lists no labelled case, or a case without a label.
    """
    folder = _existing_folder(dataset_dir)
    entries = _task_entries(folder)
    unlabelled = [
        str(entry)
        for entry in entries
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label")))
    ]
    if unlabelled:
        raise ValueError(f"{folder / 'dataset.json'} lists images without a label: {', '.join(unlabelled)}")
    cases = [{key: str(folder / entry[key]) for key in ("image", "label")} for entry in entries]
    _refuse_missing(folder, cases)
    return cases


def scans(dataset_dir: str | Path) -> list[Case]:
    """The scans of a folder (searched through) or the training images of an MSD task: ``{"image": path}``.

    A task's order is that of :func:`labelled_cases`, so that one seed splits both alike and images held out in
    fine-tuning are held out in pretraining too. Its labels are not looked for.

    Raises:
        FileNotFoundError: there is no such folder, no volume in it, or a listed image is missing.
        ValueError: the task lists no image.
    """
    folder = _existing_folder(dataset_dir)
    if not (folder / "dataset.json").is_file():
        return [{"image": str(path)} for path in image_files(folder)]
    entries = _task_entries(folder)
    cases = [{"image": str(folder / (entry["image"] if isinstance(entry, dict) else entry))} for entry in entries]
    _refuse_missing(folder, cases)
    return cases


def image_files(dataset_dir: str | Path) -> list[Path]:
    """All volumes of a folder and its sub-folders, see :func:`digar.volumes.search.find_volumes`.

    Raises:
        FileNotFoundError: there is no such folder, or no volume in it.
    """
    folder = _existing_folder(dataset_dir)
    found = find_volumes(folder)
    if not found:
        raise FileNotFoundError(f"dataset_dir {folder} holds no image ({', '.join(VOLUME_SUFFIXES)} or DICOM series)")
    return [Path(path) for path in found]


def split_cases(cases: Sequence[Case], validation_share: float, seed: int, part: str, fold: int = 0) -> list[Case]:
    """The training or the validation part of the cases, drawn by case with a fixed seed.

    Args:
        cases: all cases.
        validation_share: share held out, in [0, 1); at least one case where it is positive.
        seed: draws the split; the same for pretraining and fine-tuning keeps held-out images unseen in both.
        part: ``training``, ``validation`` or ``all``.
        fold: which share of the shuffled cases is held out: 0, 1, ... below ``1 / validation_share``. With a share of
            0.2 every case is held out in one of five folds.

    Raises:
        ValueError: the share, the fold or the part is not one of these, or nothing is left to train on.
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share {validation_share} must be at least 0 and below 1")
    if part == "all":
        return list(cases)
    if fold < 0 or (fold and not 0 < (fold + 1) * validation_share < 1 + 1e-9):
        raise ValueError(f"fold {fold}: with validation_share {validation_share} there is no such fold")
    order = list(range(len(cases)))
    random.Random(seed).shuffle(order)
    first, end = (round(len(cases) * validation_share * number) for number in (fold, fold + 1))
    held_out = set(order[first : max(end, first + 1)]) if validation_share else set()
    if len(held_out) >= len(cases):
        raise ValueError(
            f"{len(cases)} cases and validation_share {validation_share} leave none to train on: "
            "add cases, or pass --validation_share 0"
        )
    if part not in ("training", "validation"):
        raise ValueError(f"part {part!r} must be training, validation or all")
    return [case for i, case in enumerate(cases) if (i in held_out) == (part == "validation")]


def label_subset(cases: Sequence[Case], label_ratio: float, seed: int) -> list[Case]:
    """A share of the labelled training cases (at least one), drawn with a fixed seed; smaller shares are nested.

    Raises:
        ValueError: ``label_ratio`` outside (0, 1].
    """
    if not 0 < label_ratio <= 1:
        raise ValueError(f"label_ratio {label_ratio} must be above 0 and at most 1")
    order = list(range(len(cases)))
    random.Random(seed).shuffle(order)
    return [cases[i] for i in sorted(order[: max(round(len(cases) * label_ratio), 1)])]


def labelled_part(
    dataset_dir: str | Path,
    labels: Mapping[int, str],
    validation_share: float,
    seed: int,
    part: str,
    label_ratio: float = 1.0,
    label_seed: int = 0,
    fold: int = 0,
) -> list[Case]:
    """The labelled cases of an MSD task that a run works on.

    Args:
        dataset_dir: the task.
        labels: of the network, by value.
        validation_share: share held out; see :func:`split_cases`.
        seed: draws the split.
        part: ``training``, ``validation`` or ``all``.
        label_ratio: share of the part that is used; see :func:`label_subset`.
        label_seed: draws that share, apart from the split, so that several draws keep the same cases held out.
        fold: which share is held out; see :func:`split_cases`.

    Raises:
        FileNotFoundError: see :func:`labelled_cases`.
        ValueError: see these functions and :func:`check_labels`.
    """
    check_labels(dataset_dir, labels)
    cases = split_cases(labelled_cases(dataset_dir), validation_share, seed, part, fold)
    return label_subset(cases, label_ratio, label_seed)


def check_labels(dataset_dir: str | Path, labels: Mapping[int, str]) -> None:
    """Refuse data that name other labels than those that the network learns or has learned.

    Args:
        dataset_dir: the data.
        labels: of the network, by value.

    Raises:
        ValueError: tells both, and what to do.
    """
    theirs = read_data(dataset_dir, labelled=True).labels
    remedy = f"write a task for these data (digar plan {dataset_dir} -o task.yaml) and pass --task task.yaml"
    if not labels:
        raise ValueError(f"the task of this run names no labels: {remedy}")
    if not theirs:
        return
    if max(theirs) != max(labels):
        raise ValueError(
            f"{dataset_dir} has the labels {_listed(theirs)}, num_classes is {max(labels) + 1}: {remedy}, or pass "
            f"--num_classes {max(theirs) + 1}"
        )
    named = {value: name for value, name in labels.items() if name != unnamed(value) and value in theirs}
    other = [value for value, name in named.items() if name.casefold() != theirs[value].casefold()]
    if other and len(other) == len(named):
        raise ValueError(f"{dataset_dir} has the labels {_listed(theirs)}, the network {_listed(labels)}: {remedy}")
    for value in other:
        logger.warning("%s calls label %d %s, the task calls it %s", dataset_dir, value, theirs[value], labels[value])


def _listed(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())


def label_names(dataset_dir: str | Path, labels: Mapping[int, str]) -> list[str]:
    """The names of the labels 1, 2, ... of data: their own, else those of the network.

    Raises:
        ValueError: see :func:`check_labels`.
    """
    check_labels(dataset_dir, labels)
    names = {**labels, **read_data(dataset_dir, labelled=True).labels}
    return [names.get(value, unnamed(value)) for value in range(1, max(names) + 1)]


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

    def attempt(case: Case) -> CaseFacts | VolumeError:
        try:
            loaded = load(case)
        except VolumeError as error:
            return error
        image = loaded["image"]
        for warning in image.meta[WARNINGS]:
            logger.warning("%s: %s", image.meta["filename_or_obj"], warning)
        label = loaded["label"]
        return case_facts(image, label if isinstance(label, MetaTensor) else None)  # that of a classification: a number

    with ThreadPool(READERS) as pool:
        results = list(tqdm(pool.imap(attempt, cases), total=len(cases), desc="checking cases", leave=False))
    problems = [str(result) for result in results if isinstance(result, VolumeError)]
    if problems:
        raise ValueError(f"{len(problems)} of {len(cases)} cases cannot be used:\n" + "\n".join(problems))
    return [result for result in results if not isinstance(result, VolumeError)]
