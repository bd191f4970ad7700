"""One vector per volume from frozen pretrained weights: for retrieval, clustering, or a small classifier on top."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from digar.data.layouts import Case
from digar.data.sequences.crops import read_crop
from digar.networks import PretrainingNetwork
from digar.volumes.checks import WARNINGS, CheckedReader
from digar.volumes.files import whole_file, write_rows
from digar.volumes.header import VolumeError
from digar.volumes.prepared import resampled

logger = logging.getLogger(__name__)


def sample_windows(scan: Tensor, sample_size: Sequence[int]) -> list[tuple[slice, ...]]:
    """Windows of the sample's size that cover a scan ``(C, X, Y, Z)``, the last of each axis moved inwards.

    An axis shorter than the sample is taken whole. Windows without any contrast (air) are left out, unless the whole
    scan has none.
    """
    size = [min(length, wanted) for length, wanted in zip(scan.shape[1:], sample_size, strict=True)]
    windows = dense_patch_slices(scan.shape[1:], size, size)
    with_contrast = [window for window in windows if scan[(slice(None), *window)].unique().numel() > 1]
    return with_contrast or windows[:1]


def embed_scan(
    network: PretrainingNetwork, scan: Tensor, inferer: Inferer, device: torch.device, batch_size: int
) -> Tensor:
    """A scan's vector ``(hidden,)``: the mean over the patch tokens of all its windows, attention everywhere.

    Each window is scaled by its own percentiles and, where an axis is short, resized: as in pretraining.

    Args:
        network: pretrained, in evaluation mode.
        scan: ``(C, X, Y, Z)`` at the training spacing. Where the network takes one channel, each channel is embedded
            and the mean taken.
        inferer: runs the backbone in the wanted precision.
        device: where it runs.
        batch_size: windows at once.
    """
    backbone = network.backbone
    channels = scan.split(1) if backbone.in_channels == 1 else [scan]
    size = backbone.image_size
    samples = [read_crop(part, window, size) for part in channels for window in sample_windows(part, size)]
    parts = [
        inferer(torch.stack(samples[start : start + batch_size]).to(device), lambda image: backbone(image)[-1])
        for start in range(0, len(samples), batch_size)
    ]
    return backbone.patches_only(torch.cat([part.cpu() for part in parts])).mean(dim=(0, 1))


def write_embeddings(
    network: PretrainingNetwork,
    scans: Sequence[Case],
    spacing: Sequence[float],
    inferer: Inferer,
    device: torch.device,
    batch_size: int,
    output_dir: str | Path,
    nonfinite_share: float = 0.01,
) -> Path:
    """Write ``embeddings.npy``, float32 ``(volumes, hidden)``, and ``embeddings.csv``, naming each row's volume.

    A volume that cannot be used has a line in the table with the reason and no row in the array.

    Args:
        network: with its weights.
        scans: ``{"image": path}``.
        spacing: of the pretraining, mm per axis.
        inferer, device, batch_size: see :func:`embed_scan`.
        output_dir: made where it is missing.
        nonfinite_share: see :class:`digar.volumes.checks.CheckedReader`.

    Returns:
        The array's path.

    Raises:
        ValueError: none of the volumes can be used; names the first and its reason.
    """
    network.eval()
    channels = network.backbone.in_channels
    reader = CheckedReader(None if channels == 1 else channels, spacing, nonfinite_share=nonfinite_share)
    vectors: list[np.ndarray] = []
    lines: list[tuple[str, str, str]] = [("row", "file", "reason")]
    for case in tqdm(scans, desc="embeddings", unit="volume"):
        path = case["image"]
        try:
            scan = resampled(path, reader)
        except VolumeError as error:
            lines.append(("", path, error.reason))
            continue
        for warning in scan.meta[WARNINGS]:
            logger.warning("%s: %s", path, warning)
        with torch.inference_mode():
            vector = embed_scan(network, scan.as_tensor(), inferer, device, batch_size)
        lines.append((str(len(vectors)), path, ""))
        vectors.append(vector.numpy())
    if not vectors:
        raise ValueError(f"none of the {len(scans)} volumes can be used; the first: {lines[1][1]}: {lines[1][2]}")
    table, array = Path(output_dir) / "embeddings.csv", Path(output_dir) / "embeddings.npy"
    write_rows(table, lines)
    with whole_file(array) as temporary:
        np.save(temporary, np.stack(vectors))
    if len(vectors) < len(scans):
        print(f"{len(scans) - len(vectors)} of {len(scans)} volumes have no embedding: see {table}")
    return array
