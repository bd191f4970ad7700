"""Write down what the training images were like, so that inference can warn of others.

python -m digar.data.training_range --dataset_dir DATA/Task04_Hippocampus --weights models/model.pt
"""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from digar.data.datalists import scans
from digar.volumes.checks import intensity_percentiles
from digar.volumes.files import file_hash, whole_file
from digar.volumes.reading import read_volume

logger = logging.getLogger(__name__)


def training_range(images: Sequence[str | Path], weights: str | Path) -> dict[str, Any]:
    """Least and greatest spacing and extent (mm, axes sorted) and intensity percentiles of images; the weights' hash.

    Raises:
        VolumeError: an image cannot be read.
    """
    spacings, extents, percentiles = [], [], []
    for path in tqdm(images, desc="training range"):
        volume = read_volume(path)
        spacing = np.linalg.norm(volume.affine[:3, :3].numpy(), axis=0)
        spacings.append(spacing)
        extents.append(spacing * np.array(volume.shape[1:]))
        percentiles.append([intensity_percentiles(channel) for channel in volume.numpy()])
    spanned = span(np.array(spacings), np.array(extents), np.array(percentiles))
    return {"weights": file_hash(weights), "images": len(images), **spanned}


def span(spacings: np.ndarray, extents: np.ndarray, percentiles: np.ndarray) -> dict[str, list]:
    """Least and greatest of what images measure.

    Args:
        spacings, extents: ``(images, 3)`` in mm; an image's axes are sorted, as files store them in any order.
        percentiles: ``(images, channels, 3)``, see :func:`digar.volumes.checks.intensity_percentiles`.

    Returns:
        ``spacing_mm`` and ``extent_mm``: three least, three greatest; ``intensity_percentiles``: for each channel and
        percentile the least and the greatest.
    """
    ranges = {"spacing_mm": np.sort(spacings, axis=1), "extent_mm": np.sort(extents, axis=1)}
    return {
        **{name: [_short(v.min(axis=0)), _short(v.max(axis=0))] for name, v in ranges.items()},
        "intensity_percentiles": [
            [_short([c[:, p].min(), c[:, p].max()]) for p in range(c.shape[1])] for c in percentiles.transpose(1, 0, 2)
        ],
    }


def read_training_range(metadata_file: str | Path, weights_file: str | Path) -> dict[str, Any] | None:
    """The range of the training images that the bundle's metadata keep, if they speak of these weights.

    Args:
        metadata_file: of the bundle; its ``training_range`` names the weights by their SHA-256.
        weights_file: of the run.
    """
    known = json.loads(Path(metadata_file).read_text(encoding="utf-8")).get("training_range")
    if known is None or known["weights"] != file_hash(weights_file):
        logger.info("%s keeps no training range of %s: images are not compared with it", metadata_file, weights_file)
        return None
    return known


def with_training_range(metadata: str, found: dict[str, Any]) -> str:
    """The JSON text of the metadata with another ``training_range``; the rest keeps its layout."""
    lines = ",\n".join(f'        "{key}": {json.dumps(value)}' for key, value in found.items())
    block = f'"training_range": {{\n{lines}\n    }}'
    key = re.search(r'"training_range":\s*', metadata)
    if key is None:
        return re.sub(r"\s*}\s*$", lambda _: f",\n    {block}\n}}\n", metadata)
    _, end = json.JSONDecoder().raw_decode(metadata, key.end())
    return metadata[: key.start()] + block + metadata[end:]


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="the images that the network was trained on")
    parser.add_argument("--weights", type=Path, default=Path("models/model.pt"))
    parser.add_argument("--metadata", type=Path, default=Path("configs/metadata.json"))
    options = parser.parse_args(arguments)
    text = options.metadata.read_text(encoding="utf-8")
    found = training_range([case["image"] for case in scans(options.dataset_dir)], options.weights)
    with whole_file(options.metadata) as temporary:
        temporary.write_text(with_training_range(text, found), encoding="utf-8")
    print("\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
