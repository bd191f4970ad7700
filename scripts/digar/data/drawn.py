"""Labels as people hand them in from a viewer: checked against their image, and given the network's values."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from digar.volumes.checks import read_label
from digar.volumes.header import VolumeError
from digar.volumes.reading import read_header
from digar.volumes.writing import write_mask


def write_drawn_label(
    target: str | Path, label: str | Path, image: str | Path, drawn: Sequence[str], labels: Mapping[str, int]
) -> list[str]:
    """Write a label that was drawn over an image with the network's values, in the image's grid.

    Args:
        target: NIfTI file to write.
        label: what was drawn: whole numbers in the image's grid.
        image: over which it was drawn.
        drawn: names of the segments in the order of their values 1, 2, ...; 3D Slicer numbers them by their place in
            its list. Empty: the values are the network's already.
        labels: the network's value of each name, in lower case.

    Returns:
        The names of the values that the label holds, in the order of the values.

    Raises:
        ValueError: the label cannot be read, lies elsewhere than the image, or holds values or segments that the
            network does not know. Nothing is written then.
    """
    names = [name.lower() for name in drawn]
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise ValueError(f"segments {', '.join(unknown)} are not among {', '.join(labels)}: rename them and save again")
    header = read_header(image)
    try:
        places = read_label(label, header, num_classes=(len(names) or max(labels.values())) + 1)
    except VolumeError as error:
        raise ValueError(f"the label {error.reason}".replace(str(label), "its file")) from error
    values = np.array([0, *(labels[name] for name in names)] if names else range(max(labels.values()) + 1))
    mask = values.astype(np.uint8 if values.max() < 256 else np.uint16)[places]
    write_mask(target, mask, header.affine, header.placement)
    present = np.unique(mask)
    return [name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value in present]
