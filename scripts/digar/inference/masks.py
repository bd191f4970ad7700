"""What can be done with a finished mask: the largest component of each label, other label values, volumes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from digar.data.task import Codes, Task, label_name


class LargestComponentd(MapTransform):
    """Keep the largest connected component (26 neighbours) of every label of masks ``(1, X, Y, Z)``.

    Args:
        keys: of the masks.
        enabled: False keeps all.
    """

    def __init__(self, keys: str | Sequence[str], enabled: bool = True) -> None:
        super().__init__(keys)
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        kept = dict(data)
        for key in self.key_iterator(kept) if self.enabled else ():
            kept[key] = _like(kept[key], largest_components(kept[key].numpy()[0])[None])
        return kept


def largest_components(mask: np.ndarray) -> np.ndarray:
    """A copy of a mask ``(X, Y, Z)`` with all but the largest component of each label set to 0."""
    kept = mask.copy()
    for label, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        components, count = ndimage.label(mask[box] == label, structure=np.ones((3, 3, 3)))
        if count > 1:
            sizes = count_values(components)
            sizes[0] = 0
            kept[box][(components > 0) & (components != sizes.argmax())] = 0
    return kept


def count_values(values: np.ndarray) -> np.ndarray:
    """How often each whole number occurs, ``numpy.bincount`` slice by slice: as a whole it takes 8 bytes a number."""
    counts = np.zeros(int(values.max()) + 1, np.int64)
    for part in values:
        counts += np.bincount(part.ravel(), minlength=len(counts))
    return counts


class RemapLabelsd(MapTransform):
    """Give labels other values; those that are not named stay.

    Args:
        keys: of the masks.
        mapping: network's label to written label.

    Raises:
        ValueError: a written label is below 0 or above 65535.
    """

    def __init__(self, keys: str | Sequence[str], mapping: Mapping[int | str, int]) -> None:
        super().__init__(keys)
        self.mapping = {int(label): int(value) for label, value in mapping.items()}
        if any(not 0 <= value <= 65535 for value in self.mapping.values()):
            raise ValueError(f"label_mapping {dict(mapping)} must lead to values from 0 to 65535")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        mapped = dict(data)
        for key in self.key_iterator(mapped) if self.mapping else ():
            mask = mapped[key].numpy()
            table = np.arange(max(int(mask.max()), *self.mapping) + 1)
            for label, value in self.mapping.items():
                table[label] = value
            values = np.empty(mask.shape, np.uint16 if table.max() > 255 else np.uint8)
            for part, found in zip(values[0], mask[0], strict=True):
                part[...] = table[found]
            mapped[key] = _like(mapped[key], values)
        return mapped


def _like(mask: MetaTensor, values: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values), meta=mask.meta)


def written_labels(task: Task, mapping: Mapping[int | str, int]) -> dict[int, str]:
    """Value in the mask to name, background left out.

    Args:
        task: of the network; labels without a name are called by their number.
        mapping: see :class:`RemapLabelsd`.
    """
    values = {int(label): int(value) for label, value in mapping.items()}
    written: dict[int, str] = {}
    for label in range(1, task.num_classes):
        value, name = values.get(label, label), label_name(task.labels, label)
        written[value] = f"{written[value]} + {name}" if value in written else name
    return {value: name for value, name in sorted(written.items()) if value}


def written_codes(task: Task, mapping: Mapping[int | str, int]) -> Codes:
    """Value in the mask to its codes; several labels that become one value have none.

    Args:
        task: of the network.
        mapping: see :class:`RemapLabelsd`.
    """
    values = {int(label): int(value) for label, value in mapping.items()}
    written = [values.get(label, label) for label in range(1, task.num_classes)]
    found = {values.get(label, label): entry for label, entry in sorted(task.codes.items())}
    return {value: entry for value, entry in found.items() if value and written.count(value) == 1}


def volumes_ml(mask: np.ndarray, affine: np.ndarray, labels: Mapping[int, str]) -> dict[str, Any]:
    """Volume of each label in ml, by its name; of a mask ``(X, Y, Z, T)`` a list, one for each of T."""
    if mask.ndim == 4:
        each = [volumes_ml(volume, affine, labels) for volume in np.moveaxis(mask, -1, 0)]
        return {name: [volumes[name] for volumes in each] for name in labels.values()}
    length = max(labels, default=0) + 1
    counts = np.zeros(length, np.int64)
    for plane in np.moveaxis(mask, -1, 0):  # one by one: bincount takes eight bytes for each voxel
        counts += np.bincount(plane[plane < length], minlength=length)
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return {name: round(int(counts[value]) * voxel, 4) for value, name in labels.items()}


def absent_labels(volumes: Mapping[str, Any]) -> list[str]:
    """A sentence for each label without a voxel."""
    several = {name: value if isinstance(value, list) else [value] for name, value in volumes.items()}
    return [
        f"no voxel of {name} (0 ml)" + (f" in volume {number}" if isinstance(volumes[name], list) else "")
        for name, values in several.items()
        for number, volume in enumerate(values)
        if volume == 0
    ]
