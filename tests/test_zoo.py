"""What the MONAI model zoo asks of a bundle, in the way it asks, without a download."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow
from release import bundle_files

from tests.conftest import ROOT, SMALL

CONFIGS = ROOT / "configs"
META, LOGGING = str(CONFIGS / "metadata.json"), str(CONFIGS / "logging.conf")
WEIGHTS = str(ROOT / "models/model.pt")
MAX_BYTES = 25e6
FORMAT = json.loads(Path(META).read_text())["network_data_format"]
INPUT, OUTPUT = (
    (1, tensor["num_channels"], *tensor["spatial_shape"])
    for tensor in (FORMAT["inputs"]["image"], FORMAT["outputs"]["pred"])
)


def config(name: str) -> str:
    return str(CONFIGS / name)


# Files


def test_no_file_is_over_25_mb() -> None:
    assert {name for name in bundle_files(ROOT) if (ROOT / name).stat().st_size > MAX_BYTES} == set()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LICENSE", "Apache License"),
        ("docs/data_license.txt", "CC-BY-SA"),
        ("docs/README.md", "models/model.pt"),
        ("configs/metadata.json", '"changelog"'),
        ("configs/inference.json", '"network_def"'),
        ("models/model.pt", ""),
    ],
)
def test_a_file_that_the_zoo_looks_for_is_in_the_bundle(name: str, words: str) -> None:
    assert name in bundle_files(ROOT)
    assert words in (ROOT / name).read_text(errors="replace")


# The verifier's commands


def test_the_zoos_command_accepts_the_metadata_and_refuses_them_without_a_task(tmp_path: Path) -> None:
    schema = str(shutil.copy(ROOT / "tests/metadata_schema.json", tmp_path))  # an existing file is not downloaded
    monai.bundle.verify_metadata(meta_file=META, filepath=schema)
    metadata = json.loads(Path(META).read_text())
    del metadata["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'task' is a required property"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference.json", "train.json"])
def test_the_network_takes_and_gives_what_the_metadata_say_from_any_folder(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "monai.bundle", "verify_net_in_out", "network_def",
        "--config_file", config(name), "--meta_file", META, "--bundle_root", str(ROOT),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "verified with no error" in result.stdout + result.stderr


@pytest.mark.slow
def test_the_shipped_weights_export_to_files_that_compute_the_same(tmp_path: Path) -> None:
    network = monai.bundle.load(**LOADING)
    image = torch.rand(2, *INPUT[1:], generator=torch.Generator().manual_seed(0))  # rounding depends on the image
    with torch.inference_mode():
        expected = network.eval()(image)
    for kind, export in (("torchscript", monai.bundle.ckpt_export), ("onnx", monai.bundle.onnx_export)):
        file = tmp_path / ("model.ts" if kind == "torchscript" else "model.onnx")
        files = {"ckpt_file": WEIGHTS, "meta_file": META, "config_file": config("inference.json")}
        export(args_file=config(f"export_{kind}.json"), filepath=str(file), bundle_root=str(ROOT), **files)
        assert file.stat().st_size < MAX_BYTES
        options = {"config_file": [config("inference.json"), config("exported.json")], "bundle_root": str(ROOT)}
        exported = ConfigWorkflow(
            **options, weights_file=str(file), task=str(ROOT / "models"), workflow_type="inference"
        )
        exported.initialize()
        with torch.inference_mode():
            torch.testing.assert_close(exported.network_def(image), expected, rtol=0, atol=1e-4)


# Loading as a library

LOADING = {
    "name": ROOT.name,
    "bundle_dir": str(ROOT.parent),
    "workflow_type": "inference",
    "args_file": {"bundle_root": str(ROOT)},
    "device": "cpu",
}


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_gives_the_trained_network_without_any_data(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = monai.bundle.load(**{**LOADING, "workflow_type": kind})
    stored = torch.load(WEIGHTS, weights_only=True)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].float(), rtol=0, atol=0, msg=name)
    with torch.inference_mode():
        assert tuple(network.eval()(torch.rand(INPUT)).shape) == OUTPUT
    assert list(tmp_path.iterdir()) == []


def test_load_takes_another_network_for_the_same_weights() -> None:
    network = monai.bundle.load(**LOADING, net_override={"dropout": 0.2})
    assert network.backbone.dropout.p == 0.2


def test_create_workflow_gives_an_initialized_workflow() -> None:
    options = {"config_file": config("inference.json"), "workflow_type": "inference", "bundle_root": str(ROOT)}
    workflow = monai.bundle.create_workflow(**options, device=torch.device("cpu"))
    stored = {name: tensor.float() for name, tensor in torch.load(WEIGHTS, weights_only=True).items()}
    torch.testing.assert_close(dict(workflow.network_def.state_dict()), stored, rtol=0, atol=0)


# Workflows; tests/test_digar_hippocampus_mri_segmentation.py runs the others, in the zoo's form


@pytest.mark.parametrize("name", ["train.json", "pretrain.yaml"])
def test_a_training_has_every_property_that_monai_lists(name: str, task: Path, tmp_path: Path) -> None:
    options = {"config_file": config(name), "workflow_type": "train", "meta_file": META, "logging_file": LOGGING}
    workflow = ConfigWorkflow(**options, **overrides(task, tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()


def overrides(task: Path, folder: Path) -> dict:
    """What the zoo's unit tests hand to a training, here with a small network."""
    own = {"bundle_root": str(ROOT), "dataset_dir": str(task), "output_dir": str(folder / "training")}
    return {**SMALL, **own, "weights_file": str(folder / "model.pt")}
