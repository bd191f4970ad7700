"""The bundle in MONAI Deploy: its bundle operator, and the example application.

The operator (``MonaiBundleInferenceOperator`` of monai-deploy-app-sdk 4.0.0) needs CUDA packages that are not installed
here. What it does is stood in for below, step by step; where it is installed, the example application runs, too.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
import torch
from digar.volumes.reading import read_volume
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from monai.utils import ensure_tuple

from tests.conftest import ROOT
from tests.dicom_files import write_series

DROPPED = ("LoadImage", "SaveImage")  # transforms whose class name contains one of these are left out
OBLIQUE = np.array([[0.98, -0.17, 0, 12], [0.17, 0.98, 0, -40], [0, 0, 1.4, 7], [0, 0, 0, 1]])
TURNED = OBLIQUE[:, [2, 0, 1, 3]] * [-1, 1, -1, 1]


class BundleOperator:
    """What the operator reads off a bundle's folder, and what it makes of one image."""

    def __init__(self, bundle: Path) -> None:
        parser = ConfigParser()
        parser.read_meta(json.loads((bundle / "configs/metadata.json").read_text()))
        parser.read_config([bundle / "configs/inference.json"])
        parser.parse()
        self.output = next(iter(parser["_meta_"]["network_data_format"]["outputs"]))
        self.input = next(iter(parser["_meta_"]["network_data_format"]["inputs"]))
        self.device = parser.get_parsed_content("device")
        self.inferer = parser.get_parsed_content("inferer")
        self.before, self.after = (
            self._kept(parser.get_parsed_content(f"{when}processing")) for when in ("pre", "post")
        )
        self.network = parser.get_parsed_content("network")
        self.network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True), strict=True)
        self.network.eval()

    @staticmethod
    def _kept(steps: Compose) -> Compose:
        steps.transforms = tuple(t for t in steps.transforms if not any(d in type(t).__name__ for d in DROPPED))
        assert isinstance(steps.transforms[0], MapTransform)  # else each value would be handed over by itself
        return steps

    def mask(self, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """A series' voxels ``(X, Y, Z)`` as stored, and its affine (to RAS mm), to a mask ``(Z, Y, X)``."""
        meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.array(voxels.shape)}
        meta |= {"original_channel_dim": "no_channel", "Modality": "MR", "spacing": np.ones(3)}
        image = MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(voxels), meta)
        with torch.no_grad():
            data = self.before({self.input: image})
            logits = self.inferer(inputs=data[self.input][None].to(self.device), network=self.network)
            result = self.after({self.output: ensure_tuple(logits)[0], self.input: data[self.input]})
        return np.swapaxes(np.squeeze(result[self.output].cpu().numpy(), 0), 0, 2).astype(np.uint8)


@pytest.fixture(params=[OBLIQUE, TURNED], ids=["oblique", "turned"])
def series(request, tmp_path: Path) -> Path:
    """A series of an object like a hippocampus, in whole numbers."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 44, 24)), indexing="ij")
    inside = (x / 0.35) ** 2 + (y / 0.7) ** 2 + ((z - 0.25 * y**2) / 0.4) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 20, inside.shape)
    write_series(tmp_path / "series", (200 + 150 * inside + noise).astype(np.int16), request.param)
    return tmp_path / "series"


def folder_inference(images: Path, masks: Path) -> np.ndarray:
    """The mask that the bundle's own folder inference writes."""
    command = [
        sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
        "--dataset_dir", str(images), "--output_dir", str(masks),
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (file,) = masks.glob("*_mask.nii.gz")
    return np.asarray(nib.load(file).dataobj)


def test_the_operator_makes_the_mask_of_the_folder_inference(series: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    image = read_volume(series)
    mask = BundleOperator(ROOT).mask(image[0].numpy().astype(np.int16), image.affine.numpy())
    expected = folder_inference(series.parent, tmp_path / "masks")
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(np.swapaxes(mask, 0, 2), expected)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("holoscan") is None, reason="monai-deploy-app-sdk is not installed here")
def test_the_example_application_writes_the_mask_as_dicom_seg(series: Path, tmp_path: Path) -> None:
    command = [sys.executable, "examples/deploy_app.py", "--input", str(series), "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (file,) = (tmp_path / "out").glob("*.dcm")
    written = highdicom.seg.segread(file)
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["anterior", "posterior"]
    expected = folder_inference(series.parent, tmp_path / "masks")
    assert sum(int(frame.sum()) for frame in written.pixel_array) == int((expected > 0).sum())
