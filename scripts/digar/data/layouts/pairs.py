"""Two folders side by side, one of images and one of labels, whose files go by the same names."""

from pathlib import Path

from digar.data.layouts.layout import Case, DataSet
from digar.volumes.search import case_name, find_volumes

IMAGES = ("images", "imagesTr", "image", "scans", "volumes")
LABELS = ("labels", "labelsTr", "label", "masks", "segmentations")
ENDINGS = ("", "_mask", "_seg", "_label", "_labels", "_gt")  # that a label's name may add to its image's


class FolderPair:
    """``images/`` and ``labels/`` (see ``IMAGES`` and ``LABELS`` for the names) in one folder.

    A label belongs to the image of its name, with or without one of ``ENDINGS``, in the same sub-folder; an image may
    be a folder with a DICOM series. Images without a label are kept as unlabelled.
    """

    name = "folders of images and labels"
    labelled = True

    def missing(self, place: Path) -> list[str]:
        names = {path.name for path in place.iterdir() if path.is_dir()} if place.is_dir() else set()
        wanted = ((IMAGES, "images"), (LABELS, "labels"))
        found = [f"it has no folder {word} (or {', '.join(n[1:])})" for n, word in wanted if not names & set(n)]
        return found + (["its dataset.json speaks of another layout"] if (place / "dataset.json").exists() else [])

    def read(self, place: Path) -> DataSet:
        images, labels = (next(place / n for n in names if (place / n).is_dir()) for names in (IMAGES, LABELS))
        found = {_key(images, path, ""): path for path in find_volumes(images)}
        labelled: list[Case] = []
        matched: set[str] = set()
        for path in find_volumes(labels):
            key = next((key for e in ENDINGS if (key := _key(labels, path, e)) in found), None)
            if key is None:
                raise ValueError(f"label {path} has no image of its name in {images}: rename one of them")
            if key in matched:
                raise ValueError(f"image {found[key]} has two labels, one is {path}: remove one of them")
            matched.add(key)
            labelled.append({"image": found[key], "label": path})
        if not labelled:
            raise ValueError(f"{labels} contains no label")
        unlabelled = [{"image": path} for key, path in found.items() if key not in matched]
        return DataSet(self.name, place, labelled, unlabelled)


def _key(folder: Path, path: str, ending: str) -> str:
    """Sub-folder and name of a file without ``ending``."""
    relative = Path(path).relative_to(folder)
    return (relative.parent / case_name(path).removesuffix(ending)).as_posix()
