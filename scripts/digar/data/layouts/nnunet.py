"""Raw data sets of nnU-Net v2: one file per channel, ``imagesTr/case_0000.nii.gz``, and ``labelsTr/case.nii.gz``."""

import re
from pathlib import Path

from digar.data.layouts.layout import Case, DataSet, label_names
from digar.volumes.files import read_json

SPLITS = "splits_final.json"


class NnUNetRaw:
    """``dataset.json`` with ``channel_names``, ``labels`` (name to value) and ``file_ending``; folds of its own.

    ``splits_final.json`` lies in the data set's folder, or in the folder of the same name under ``nnUNet_preprocessed``
    beside ``nnUNet_raw``. Regions and the ignore label are refused.
    """

    name = "nnU-Net raw data set"
    labelled = True

    def missing(self, place: Path) -> list[str]:
        file = place / "dataset.json"
        if not file.is_file():
            return ["it has no dataset.json", "no channel_names and file_ending in it"]
        content = read_json(file, dict)
        lacking = [key for key in ("channel_names", "file_ending", "labels") if key not in content]
        found = [f"its dataset.json lacks {', '.join(lacking)}"] if lacking else []
        return found + [f"it has no folder {name}" for name in ("imagesTr", "labelsTr") if not (place / name).is_dir()]

    def read(self, place: Path) -> DataSet:
        file = place / "dataset.json"
        content = read_json(file, dict)
        ending = str(content["file_ending"])
        channels = content["channel_names"]
        if not isinstance(channels, dict) or sorted(channels) != sorted(str(n) for n in range(len(channels))):
            raise ValueError(f"{file}: channel_names must name the channels 0, 1, ..., it holds {channels!r}")
        names = [str(channels[str(number)]) for number in range(len(channels))]
        labels = label_names(file, content["labels"])
        labelled: list[Case] = []
        unlabelled: list[Case] = []
        for name, images in self._images(place / "imagesTr", ending, len(names)).items():
            label = place / "labelsTr" / f"{name}{ending}"
            case: Case = {"image": images[0] if len(images) == 1 else images}
            if label.is_file():
                labelled.append(case | {"label": str(label)})
            else:
                unlabelled.append(case)
        if not labelled:
            raise ValueError(f"{place / 'labelsTr'} contains no label *{ending} of the images in imagesTr")
        self._add_folds(place, labelled, ending)
        return DataSet(self.name, place, labelled, unlabelled, names, labels)

    def _images(self, folder: Path, ending: str, num_channels: int) -> dict[str, list[str]]:
        """Case name to its files, one per channel."""
        pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
        found: dict[str, dict[int, str]] = {}
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and not path.name.startswith("."):
                found.setdefault(match[1], {})[int(match[2])] = str(path)
        if not found:
            raise ValueError(f"{folder} contains no file named CASE_0000{ending}")
        for name, files in found.items():
            absent = [f"{name}_{number:04d}{ending}" for number in range(num_channels) if number not in files]
            if absent:
                raise FileNotFoundError(f"{folder}: case {name} lacks {', '.join(absent)}")
        return {name: [files[number] for number in range(num_channels)] for name, files in found.items()}

    def _add_folds(self, place: Path, labelled: list[Case], ending: str) -> None:
        """Note in every case the fold in which it is held out, where the data set has a list of splits."""
        places = (place / SPLITS, place.absolute().parents[1] / "nnUNet_preprocessed" / place.name / SPLITS)
        file = next((path for path in places if path.is_file()), None)
        if file is None:
            return
        cases = {Path(case["label"]).name.removesuffix(ending): case for case in labelled}
        for number, split in enumerate(read_json(file, list)):
            if not isinstance(split, dict) or not isinstance(split.get("val"), list):
                raise ValueError(f"{file}: fold {number} has no list 'val'")
            for name in map(str, split["val"]):
                if name not in cases:
                    raise ValueError(f"{file}: fold {number} names a case that is not there: {name}")
                if cases[name].setdefault("fold", number) != number:
                    raise ValueError(f"{file}: case {name} is held out in fold {cases[name]['fold']} and in {number}")
