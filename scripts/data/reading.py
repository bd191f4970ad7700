"""Reading a volume from a file: the one way in for pretraining, training and inference."""

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError


class VolumeError(ValueError):
    """A file that cannot be used as a volume: ``path`` and ``reason`` (what is wrong, and what to do)."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def read_volume(path: str | Path) -> MetaTensor:
    """A NIfTI file as ``(C, X, Y, Z)`` float32 with its affine (voxel to RAS mm); a fourth axis becomes C.

    Raises:
        VolumeError: the file is missing, truncated, or not an image of three or four axes.
    """
    try:
        image = nib.load(path)
        array = np.asanyarray(image.dataobj, dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise VolumeError(path, f"cannot be read ({type(error).__name__}: {error})") from error
    if array.ndim not in (3, 4):
        raise VolumeError(path, f"has {array.ndim} axes; a volume has three, or four with channels last")
    channels_first = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return MetaTensor(np.ascontiguousarray(channels_first), affine=image.affine, meta={"filename_or_obj": str(path)})
