"""Volumes with a class each: a table of files (CSV), or a MedMNIST archive (.npz)."""

import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor

from digar.data.layouts import Case
from digar.data.splits import Split, label_subset, split_cases
from digar.volumes.checks import WARNINGS, CheckedLoadImaged, mend
from digar.volumes.files import read_table
from digar.volumes.reading import volume_exists
from digar.volumes.search import case_names

PARTS = ("training", "validation", "test")
MEDMNIST_PARTS = dict(zip(("train", "val", "test"), PARTS, strict=True))


def classified_cases(dataset_dir: str | Path, classes: Sequence[str], validation_share: float, seed: int) -> list[Case]:
    """Volumes with their class and part: ``{"image": path or volume, "label": index, "name": str, "part": str}``.

    A table (``.csv``) has the columns ``file`` (from the table's folder on) and ``class``; if it has ``part``
    (training, validation or test) that is the split, else one is drawn: class by class, and by ``patient`` where that
    column is there, so that no patient is in both parts. A MedMNIST archive (``.npz``) brings its own three parts.

    Args:
        dataset_dir: the ``.csv`` or ``.npz`` file.
        classes: names of the classes as the table writes them, in the network's order; an archive's 0, 1, ... are the
            first, second, ... of them.
        validation_share, seed: of the drawn split, see :func:`digar.data.datalists.split_cases`.

    Raises:
        FileNotFoundError: the file, or an image of the table, is missing.
        ValueError: another kind of file, a missing column, an unknown class or part, or a patient with two classes.
    """
    path = Path(dataset_dir)
    if not path.is_file() or path.suffix.lower() not in (".csv", ".npz"):
        raise FileNotFoundError(
            f"dataset_dir {path} must be a table (.csv with the columns file and class) or a MedMNIST archive (.npz)"
        )
    if path.suffix.lower() == ".npz":
        return _archive_cases(path, classes)
    return _table_cases(path, classes, validation_share, seed)


def _table_cases(path: Path, classes: Sequence[str], validation_share: float, seed: int) -> list[Case]:
    rows = read_table(path, ("file", "class"))
    if not rows:
        raise ValueError(f"{path} has no row: it needs one for each volume")
    cases: list[Case] = []
    patients: dict[str, list[Case]] = {}
    for line, row in rows:
        if row["class"] not in classes:
            raise ValueError(
                f"{path}, line {line}: class {row['class']!r} is not one of {', '.join(classes)}: correct it, or pass "
                "all class names, --classes \"['no','yes']\""
            )
        if row.get("part", PARTS[0]) not in PARTS:
            raise ValueError(f"{path}, line {line}: part {row['part']!r} must be one of {', '.join(PARTS)}")
        file = path.parent / row["file"]
        case = {"image": str(file), "label": list(classes).index(row["class"]), "part": row.get("part", PARTS[0])}
        cases.append(case)
        patients.setdefault(row.get("patient") or str(file), []).append(case)
    missing = [case["image"] for case in cases if not volume_exists(case["image"])]
    if missing:
        raise FileNotFoundError(f"{path} lists files that are missing: {', '.join(missing)}")
    for case, name in zip(cases, case_names([case["image"] for case in cases]), strict=True):
        case["name"] = name
    if "part" not in rows[0][1]:
        _draw_parts(path, patients, validation_share, seed)
    return cases


def _draw_parts(path: Path, patients: dict[str, list[Case]], validation_share: float, seed: int) -> None:
    """Set the part of every case, class by class and patient by patient."""
    by_class: dict[int, list[Case]] = {}
    for patient, own in patients.items():
        if len({case["label"] for case in own}) > 1:
            raise ValueError(f"{path}: patient {patient} has volumes of two classes: give the split in a column part")
        by_class.setdefault(own[0]["label"], []).append({"cases": own})
    for groups in by_class.values():
        for group in split_cases(groups, validation_share, seed, "validation"):
            for case in group["cases"]:
                case["part"] = "validation"


def _archive_cases(path: Path, classes: Sequence[str]) -> list[Case]:
    cases: list[Case] = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {
                part: (archive[f"{key}_images"], archive[f"{key}_labels"].ravel())
                for key, part in MEDMNIST_PARTS.items()
            }
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no MedMNIST archive of volumes: {error}") from error
    for part, (images, labels) in arrays.items():
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"{path}: the {part} images have shape {images.shape}, {len(labels)} labels: (N, X, Y, Z) is needed"
            )
        unknown = sorted(set(labels.tolist()) - set(range(len(classes))))
        if unknown:
            raise ValueError(f"{path} has the classes {unknown}, only {len(classes)} are named: pass all in --classes")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            cases.append({"image": image, "label": int(label), "name": f"{part}_{index:04d}", "part": part})
    return cases


def classified_split(
    dataset_dir: str | Path,
    classes: Sequence[str],
    validation_share: float,
    seed: int,
    label_ratio: float = 1.0,
) -> Split:
    """The cases by part: ``training``, ``validation``, ``test`` and ``all``.

    Args:
        dataset_dir, classes, validation_share, seed: see :func:`classified_cases`.
        label_ratio: share of the training cases that is used, see :func:`digar.data.datalists.label_subset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`classified_cases`.
    """
    cases = classified_cases(dataset_dir, classes, validation_share, seed)
    split = {part: [case for case in cases if case["part"] == part] for part in PARTS}
    return {**split, "training": label_subset(split["training"], label_ratio, seed), "all": cases}


def check_classes(training: Sequence[Case], validation: Sequence[Case], classes: Sequence[str]) -> None:
    """Refuse training or validation cases without a class: it could not be learned, and its AUC is undefined.

    Raises:
        ValueError: names the classes and the part.
    """
    for part, cases in (("training", training), ("validation", validation or training)):
        absent = [name for index, name in enumerate(classes) if all(case["label"] != index for case in cases)]
        if absent:
            raise ValueError(
                f"the {len(cases)} {part} cases contain no volume of class {', '.join(absent)}: add some, raise "
                "validation_share or label_ratio, or leave the class out"
            )


class LoadImageOrVoxelsd(CheckedLoadImaged):
    """A :class:`CheckedLoadImaged` that also takes the voxels ``(X, Y, Z)`` of an archive, of 1 mm, and checks them."""

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        (key,) = self.keys
        if not isinstance(data[key], np.ndarray):
            return super().__call__(data, reader)
        volume = np.array(data[key], np.float32)[None]
        warnings = mend(data["name"], volume, self.checked_reader.nonfinite_share)
        meta = {WARNINGS: warnings, "filename_or_obj": data["name"]}
        return {**data, key: MetaTensor(torch.from_numpy(volume), affine=torch.eye(4, dtype=torch.float64), meta=meta)}


def without_metadata(case: dict[str, Any]) -> dict[str, Any]:
    """The case as the network takes it: a plain image, its class and its name."""
    return {"image": case["image"].as_tensor(), "label": case["label"], "name": case["name"]}
