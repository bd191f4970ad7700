"""BIDS data sets, raw and derivatives: the anatomical volumes of every subject, without labels."""

import re
from pathlib import Path

from digar.data.layouts.layout import DataSet
from digar.volumes.search import find_volumes

SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
NO_IMAGES = ("mask", "dseg", "probseg", "xfm", "bold", "dwi", "sbref", "asl", "epi", "phasediff")  # suffixes of names


class Bids:
    """``sub-*/[ses-*/]anat/*.nii.gz``, in derivatives as well; masks, segmentations and time series are left out.

    The subject is the patient. For pretraining and inference: BIDS does not say which label belongs to a training.
    """

    name = "BIDS data set"
    labelled = False

    def missing(self, place: Path) -> list[str]:
        if not place.is_dir() or not _subjects(place):
            return ["it has no folders sub-*", "no anat folders in them"]
        anatomy = any(next(subject.glob(f"{level}anat"), None) for subject in _subjects(place) for level in ("", "*/"))
        return [] if anatomy else ["its folders sub-* contain no folder anat"]

    def read(self, place: Path) -> DataSet:
        cases = [
            {"image": path, "patient": subject.name}
            for subject in _subjects(place)
            for path in find_volumes(subject)
            if is_anatomy(path)
        ]
        if not cases:
            raise FileNotFoundError(f"{place} contains no volume in an anat folder of a subject")
        return DataSet(self.name, place, unlabelled=cases)


def is_anatomy(path: str) -> bool:
    """Whether a file of a BIDS data set is an anatomical image, by its folder and its name."""
    stem = Path(path).name.split(".")[0]
    return "anat" in Path(path).parts and stem.rpartition("_")[2] not in NO_IMAGES


def _subjects(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and SUBJECT.fullmatch(path.name))
