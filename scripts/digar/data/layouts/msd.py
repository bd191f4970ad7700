"""Tasks of the Medical Segmentation Decathlon: ``dataset.json`` lists every image and label."""

from pathlib import Path

from digar.data.layouts.layout import Case, DataSet, label_names
from digar.volumes.files import read_json


class MsdTask:
    """``dataset.json`` with ``training``: objects of ``image``, ``label`` and perhaps ``patient``, or paths alone."""

    name = "MSD task"
    labelled = True

    def missing(self, place: Path) -> list[str]:
        file = place / "dataset.json"
        if not file.is_file():
            return ["it has no dataset.json", "no list 'training' in it"]
        listed = "training" in read_json(file, dict)
        return [] if listed else ["its dataset.json has no list 'training'", "so it lists no case"]

    def read(self, place: Path) -> DataSet:
        file = place / "dataset.json"
        content = read_json(file, dict)
        labelled: list[Case] = []
        unlabelled: list[Case] = []
        for number, entry in enumerate(content["training"] or []):
            case = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(case, dict) or not isinstance(case.get("image"), str):
                raise ValueError(f"{file}: entry {number} of 'training' names no image: {entry!r}")
            read = {key: str(place / case[key]) for key in ("image", "label") if isinstance(case.get(key), str)}
            read |= {key: str(case[key]) for key in ("patient",) if case.get(key) is not None}
            (labelled if "label" in read else unlabelled).append(read)
        if not labelled and not unlabelled:
            raise ValueError(f"{file} lists no case under 'training': there is nothing to learn from")
        channels = content.get("modality", {})
        names = label_names(file, content["labels"]) if content.get("labels") else {}
        ordered = [str(channels[key]) for key in sorted(channels, key=int)] if isinstance(channels, dict) else []
        return DataSet(self.name, place, labelled, unlabelled, ordered, names)
