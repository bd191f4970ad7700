"""Any folder with volumes in it, searched through: scans without labels."""

from pathlib import Path

from digar.data.layouts.layout import DataSet
from digar.volumes.search import find_volumes


class Scans:
    """NIfTI, MetaImage and NRRD files, and folders of DICOM series, at any depth."""

    name = "folder of scans"
    labelled = False

    def missing(self, place: Path) -> list[str]:
        if not place.is_dir():
            return ["it is not a folder"]
        described = (place / "dataset.json").exists()  # its labels are not to be taken for scans
        return ["its dataset.json speaks of another layout", "so it is not searched"] if described else []

    def read(self, place: Path) -> DataSet:
        found = find_volumes(place)
        if not found:
            raise FileNotFoundError(f"{place} contains no volume (NIfTI, .mha, .mhd, .nrrd or DICOM series)")
        return DataSet(self.name, place, unlabelled=[{"image": path} for path in found])
