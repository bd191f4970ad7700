"""Datalists of MONAI's Auto3DSeg: a JSON file with ``training`` (each with its ``fold``) and ``testing``."""

from pathlib import Path
from typing import Any

from digar.data.layouts.layout import Case, DataSet
from digar.volumes.files import read_json


class Auto3DSeg:
    """Paths start from the datalist's folder, or from its ``dataroot``; a list of images are channels."""

    name = "Auto3DSeg datalist"
    labelled = True

    def missing(self, place: Path) -> list[str]:
        if not place.is_file() or place.suffix.lower() != ".json":
            return ["it is no .json file", "no list 'training' in it"]
        content = read_json(place)
        training = content.get("training") if isinstance(content, dict) else None
        return [] if isinstance(training, list) else ["it contains no list 'training'"]

    def read(self, place: Path) -> DataSet:
        content = read_json(place, dict)
        root = place.parent / str(content.get("dataroot", ""))
        labelled: list[Case] = []
        for number, entry in enumerate(content["training"]):
            case = self._case(place, root, f"entry {number} of 'training'", entry)
            if "label" not in case:
                raise ValueError(f"{place}: entry {number} of 'training' names no label: {entry!r}")
            labelled.append(case | ({} if entry.get("fold") is None else {"fold": int(entry["fold"])}))
        unlabelled = [
            self._case(place, root, f"entry {number} of 'testing'", entry)
            for number, entry in enumerate(content.get("testing", []))
        ]
        for case in unlabelled:
            case.pop("label", None)
        if not labelled:
            raise ValueError(f"{place} lists no case under 'training': there is nothing to learn from")
        return DataSet(self.name, place, labelled, unlabelled)

    def _case(self, place: Path, root: Path, where: str, entry: Any) -> Case:
        image = entry.get("image") if isinstance(entry, dict) else None
        images = [image] if isinstance(image, str) else image
        if not isinstance(images, list) or not images or not all(isinstance(path, str) for path in images):
            raise ValueError(f"{place}: {where} names no image: {entry!r}")
        paths = [str(root / path) for path in images]
        case: Case = {"image": paths[0] if len(paths) == 1 else paths}
        if isinstance(entry.get("label"), str):
            case["label"] = str(root / entry["label"])
        if entry.get("patient") is not None:
            case["patient"] = str(entry["patient"])
        return case
