"""Studies of several co-registered modalities, as BraTS lays them out: a folder each, a file per modality."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digar.data.datalists import image_files
from digar.volumes.reading import volume_suffix

TIMEPOINT = re.compile(r"(?P<patient>.*\d)-\d{3}")  # BraTS-GLI-00005-100: patient BraTS-GLI-00005, timepoint 100

logger = logging.getLogger(__name__)


def study_cases(studies_dir: str | Path, modalities: Sequence[str]) -> list[dict[str, Any]]:
    """The complete studies of a folder: ``{"kind": "contrast", "image": [a path per modality], "patient": name}``.

    A study is a folder (searched for at any depth) with files whose names end in ``-t1n.nii.gz`` or ``_t1n.nii.gz``,
    for each modality; other files in it are not read. A study that lacks a modality, or has two files of one, is left
    out with a warning. Its patient is the folder's name, without a BraTS timepoint (``-000``).

    Args:
        studies_dir: the folder of studies.
        modalities: the endings, in the order in which a sequence joins them.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: no study is complete.
    """
    cases, incomplete = _find_studies(studies_dir, modalities)
    for folder, reason in incomplete:
        logger.warning(f"study {folder} is left out: {reason}")
    if not cases:
        raise ValueError(
            f"studies_dir {studies_dir} contains no folder with a file each for {', '.join(modalities)} "
            f"({len(incomplete)} incomplete): files must end in -{modalities[0]}.nii.gz and so on, or pass --modalities"
        )
    return cases


def incomplete_studies(studies_dir: str | Path | None, modalities: Sequence[str]) -> list[tuple[str, str]]:
    """The studies that :func:`study_cases` leaves out: folder and reason each; none where no folder is given."""
    return [] if studies_dir is None else _find_studies(studies_dir, modalities)[1]


def _find_studies(
    studies_dir: str | Path, modalities: Sequence[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The cases of complete studies, and folder and reason of the others."""
    studies: dict[Path, dict[str, list[str]]] = {}
    for file in image_files(studies_dir):
        ending = re.split("[-_]", file.name.removesuffix(volume_suffix(file) or ""))[-1]
        if ending in modalities:
            studies.setdefault(file.parent, {}).setdefault(ending, []).append(str(file))
    cases, incomplete = [], []
    for folder, found in studies.items():
        wrong = [f"{len(found.get(name, []))} files of {name}" for name in modalities if len(found.get(name, [])) != 1]
        if wrong:
            incomplete.append((str(folder), f"it has {', '.join(wrong)} instead of one"))
            continue
        match = TIMEPOINT.fullmatch(folder.name)
        patient = match["patient"] if match else folder.name
        cases.append({"kind": "contrast", "image": [found[name][0] for name in modalities], "patient": patient})
    return cases, incomplete
