"""What is put into a folder of studies or a DICOMweb store: images and labels that can be used, under plain names."""

import tempfile
import threading
from pathlib import Path
from typing import Any

from digar.cli.gate import INFERENCE, is_plain_name
from digar.data.drawn import write_drawn_label
from digar.volumes.reading import read_header
from fastapi import HTTPException
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.datastore import Datastore


class CheckedStudies:
    """What a datastore of MONAI Label does with checks before it; mixed into its class.

    A label is checked against its image before it replaces an earlier one, and gets the network's values whatever the
    order of the segments that it was drawn with.
    """

    labels: dict[str, int]  # the network's value of each name; set when the network is known
    _lock = threading.RLock()  # the folder is watched by a thread, which empties the list of images for a moment

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        image_id = image_id or self._to_id(Path(image_filename).name)[0]
        if not is_plain_name(image_id):
            raise HTTPException(400, f"an image is added under a name without slashes, not {image_id[:100]!r}")
        if self.get_image_uri(image_id):
            raise HTTPException(409, f"there is an image {image_id} already: choose another name")
        try:
            read_header(image_filename)
        except ValueError as error:
            raise HTTPException(400, str(error).replace(str(image_filename), image_id)) from error
        with self._lock:
            return super().add_image(image_id, image_filename, image_info)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None, *rest: str
    ) -> str:
        if not is_plain_name(label_tag):
            raise HTTPException(400, f"a label is saved under a name without slashes, not {label_tag[:100]!r}")
        image = self.get_image_uri(image_id)
        if not image:
            raise HTTPException(404, f"there is no image {image_id[:100]!r}")
        segments = (label_info or {}).get("label_info") or []
        if not INFERENCE["label_info"].fits(segments):
            raise HTTPException(400, f"label_info must be {INFERENCE['label_info'].words}")
        with tempfile.TemporaryDirectory() as folder:
            checked = Path(folder) / "label.nii.gz"
            named = {segment.get("name", "").lower(): segment for segment in segments}
            try:
                if label_filename.endswith(".bin"):  # the voxels alone, as OHIF sends them
                    label_filename = binary_to_image(image, label_filename)
                present = write_drawn_label(checked, label_filename, image, list(named), self.labels)
            except ValueError as error:
                raise HTTPException(400, f"the label of {image_id} is not taken: {error}") from error
            info = {**(label_info or {}), "label_info": [named.get(name, {"name": name}) for name in present]}
            with self._lock:
                return super().save_label(image_id, str(checked), label_tag, info, *rest)

    def get_image_uri(self, image_id: str) -> str:
        with self._lock:
            return super().get_image_uri(image_id)

    def _reconcile_datastore(self) -> None:
        with self._lock:
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._lock:
            super()._init_from_datastore_file(throw_exception)


def with_checks(store: Datastore) -> Datastore:
    """The datastore that MONAI Label made by its settings, of whatever class, with the checks before it."""
    store.__class__ = type(f"Checked{type(store).__name__}", (CheckedStudies, type(store)), {})
    return store
