"""A folder run in a few lines, with networks whose masks are known."""

import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from digar.inference.evaluator import FolderEvaluator
from digar.inference.inputs import find_cases
from digar.inference.inverting import InvertToMaskd
from digar.inference.masks import RemapLabelsd
from digar.inference.pipeline import FolderOptions
from digar.inference.record import RunRecord
from digar.inference.windows import WindowInferer
from digar.volumes.checks import CheckedLoadImaged
from digar.volumes.grids import WorkingGridd
from digar.volumes.intensities import ScaleIntensityd
from monai.data import Dataset
from monai.transforms import Compose
from torch import Tensor, nn

from tests.conftest import ROOT

ROI = (16, 16, 16)
OF_RECORD = {"rank", "num_processes", "codes"}
LABELS = {1: "right", 2: "front", 3: "top"}


class Compass(nn.Module):
    """Four classes that tell where a voxel lies in the window: right, front, top, or none; its intensity has a part."""

    def forward(self, windows: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, n) for n in windows.shape[2:]]
        right, front, top = (place.expand(windows[:, 0].shape) for place in torch.meshgrid(*axes, indexing="ij"))
        return torch.stack([0.3 + 0.2 * windows[:, 0], right, 1.1 * front, 0.9 * top], dim=1)


class Slow(Compass):
    """Takes its time, so that a run can be stopped on the way."""

    def forward(self, windows: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(windows)


def make_evaluator(images: Path, out: Path, network: nn.Module | None = None, **options: Any) -> FolderEvaluator:
    """Over a folder, with spacing 1 mm and windows of 16 voxels."""
    weights = out.parent / f"{out.name}_weights.pt"
    if not weights.exists():
        weights.write_bytes(b"no weights")
    spacing = options.pop("spacing", (1.0, 1.0, 1.0))
    in_channels = options.pop("in_channels", 1)
    volumes_4d = options.pop("volumes_4d", "refuse")
    load = {"in_channels": in_channels, "spacing": spacing, "roi_size": ROI, "num_classes": 4}
    preprocessing = Compose([
        CheckedLoadImaged("image", volumes_4d=volumes_4d, **load),
        WorkingGridd("image", spacing),
        ScaleIntensityd("image"),
    ])  # fmt: skip
    return FolderEvaluator(
        device="cpu",
        dataset=Dataset(find_cases(images, out, in_channels), preprocessing),
        network=network or Compass(),
        inferer=options.pop("inferer", None) or WindowInferer(ROI),
        postprocessing=options.pop("postprocessing", None)
        or Compose([InvertToMaskd("pred"), RemapLabelsd("pred", {})]),
        record=RunRecord(
            out,
            weights,
            ROOT / "configs/metadata.json",
            LABELS,
            **{k: options.pop(k) for k in OF_RECORD & options.keys()},
        ),
        options=FolderOptions(in_channels, num_classes=4, **options),
    )


def blob(shape: tuple[int, ...] = (15, 12, 14), seed: int = 0) -> np.ndarray:
    """A smooth volume of random values, int16."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    noise = rng.normal(0, 5, shape)
    return (200 * np.exp(-(x**2 + 2 * y**2 + z**2)) + 40 * x + 20 * y + noise + 100).astype(np.int16)


def write_volume(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = blob() if values is None else values
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.1, 0.9, 1]) if affine is None else affine), path)
    return path


def mask_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)
