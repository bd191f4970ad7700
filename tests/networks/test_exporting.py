"""An exported file computes what its network does, for batches of any size, and says what it is for."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
import yaml
from digar import __version__
from digar.cli.app import app
from digar.cli.bundle import BundleRun
from digar.data.task import Network, Task, parse_task, read_task, to_plain, write_task
from digar.networks import exporting
from digar.networks.exported import BACKENDS, load_exported
from digar.networks.exporting import cached_onnx, export_network
from digar.networks.of_task import segmentation_network
from monai.data import load_net_with_metadata
from torch import nn
from typer.testing import CliRunner

from tests.conftest import ROOT

TASK = Task(
    name="small", channels=["MRI"], labels={1: "heart"}, spacing=(1.0, 1.0, 2.0), crop=(16, 16, 8), patch=(8, 8, 4),
    network=Network(size={"hidden_size": 24, "num_layers": 2, "num_heads": 2}, feature_size=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return segmentation_network(TASK, dropout=0.0).eval()


def facts_of(file: Path) -> dict[str, str]:
    if file.suffix == ".ts":
        return load_net_with_metadata(str(file))[1]
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.mark.parametrize("ending", [".ts", ".onnx"])
def test_a_file_computes_the_networks_logits_and_says_what_it_takes(ending: str, network: nn.Module, tmp_path: Path):
    file = tmp_path / f"model{ending}"
    export_network(network, TASK, file)
    images = torch.randn(3, 1, 16, 16, 8)
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(load_exported(file)(images), expected, rtol=0, atol=1e-4)
        one_by_one = torch.cat([load_exported(file)(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, expected, rtol=0, atol=1e-4)
    facts = facts_of(file)
    assert facts["digar"] == __version__
    assert to_plain(parse_task(yaml.safe_load(facts["task"]))) == to_plain(read_task(tmp_path / "task.yaml"))
    assert "B x 1 x 16 x 16 x 8 for any B" in facts["input"]
    assert "B x 2 x" in facts["output"]
    assert read_task(tmp_path / "task.yaml").labels == TASK.labels
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "task.yaml"]


def test_another_ending_is_refused_with_those_there_are(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.ts or \.onnx"):
        export_network(network, TASK, tmp_path / "model.pb")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_models_task_is_refused(network: nn.Module, tmp_path: Path) -> None:
    write_task(replace(TASK, spacing=[2.0, 2.0, 2.0]), tmp_path / "task.yaml")
    with pytest.raises(FileExistsError, match=r"task\.yaml is the task of another model"):
        export_network(network, TASK, tmp_path / "model.ts")
    assert [path.name for path in tmp_path.iterdir()] == ["task.yaml"]


def test_the_command_writes_a_file_that_prediction_takes(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    write_task(TASK, tmp_path / "task.yaml")
    run = CliRunner().invoke(app, ["export", str(tmp_path), "-o", str(tmp_path / "out"), "--to", "torchscript"])
    assert run.exit_code == 0, run.exception
    file = tmp_path / "out" / "model.ts"
    assert f"network: {file}" in run.output
    line = CliRunner().invoke(app, ["predict", "x", "-o", "y", "-m", str(file), "--show-command"]).output
    assert "exported.json" in line


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["export", "hippocampus", "-o", str(tmp_path), "--to", "tensorrt"])
    assert run.exit_code == 2
    assert "'torchscript', 'onnx'" in run.output


@pytest.fixture(scope="module")
def model(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.save(network.state_dict(), folder / "model.pt")
    write_task(TASK, folder / "task.yaml")
    return folder / "model.pt"


def test_every_backend_computes_the_networks_logits(network: nn.Module, model: Path) -> None:
    file = cached_onnx(model, model.parent / "cache")
    images = torch.randn(2, 1, 16, 16, 8)
    for backend in BACKENDS:
        exported = load_exported(file, backend)
        with torch.inference_mode():
            first = exported(images)
            exported(images.flip(0))  # does not change what was given
            torch.testing.assert_close(first, network(images), rtol=0, atol=1e-4)
        with pytest.raises(ValueError, match=r"size \[1, 24, 16, 8\], the exported network takes \[1, 16, 16, 8\]"):
            exported(torch.rand(1, 1, 24, 16, 8))


def test_a_model_is_exported_once_and_another_one_again(network: nn.Module, model: Path, tmp_path: Path, monkeypatch):
    file = Path(cached_onnx(model, model.parent / "cache"))
    written = file.stat().st_mtime_ns
    assert cached_onnx(model, model.parent / "cache") == str(file)
    assert file.stat().st_mtime_ns == written
    monkeypatch.setattr(exporting, "export_network", lambda *_: None)
    torch.save({name: tensor + 1 for name, tensor in network.state_dict().items()}, tmp_path / "model.pt")
    write_task(TASK, tmp_path / "task.yaml")
    assert cached_onnx(tmp_path / "model.pt", tmp_path / "cache") != str(file)


def test_an_onnx_file_needs_no_cache_and_torchscript_is_refused(tmp_path: Path) -> None:
    assert cached_onnx(tmp_path / "model.onnx", tmp_path / "cache") == str(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="is TorchScript, which only PyTorch runs"):
        cached_onnx(tmp_path / "model.ts", tmp_path / "cache")


@pytest.mark.parametrize(("backend", "package"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_a_backend_that_is_not_installed_is_named_with_its_requirements(backend, package, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}: pip install -r requirements-export.txt"):
        load_exported(tmp_path / "model.onnx", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_file_is_refused_by_every_backend(backend: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="cannot be read as ONNX: export it again"):
        load_exported(tmp_path / "model.onnx", backend)


def test_openvino_reports_nothing_to_the_internet(model: Path) -> None:
    code = (
        "import sys; from digar.networks.exported import load_exported; load_exported(sys.argv[1], 'openvino'); "
        "print(sys.modules['openvino.tools.ovc.telemetry_utils'].tm.__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, cached_onnx(model, model.parent / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("telemetry_stub")


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="backend 'tensorrt' must be one of onnxruntime, openvino"):
        load_exported("model.onnx", "tensorrt")


def test_the_masks_of_openvino_are_pytorchs(model: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 24, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "image.nii.gz")
    masks = {}
    own = {"dataset_dir": str(tmp_path / "image.nii.gz"), "weights_file": str(model), "precision": "float32"}
    for backend, overlay in (("pytorch", []), ("openvino", ["backend.json"])):
        out = tmp_path / backend
        ids = {**own, "output_dir": str(out), **({"cache_dir": str(model.parent / "cache")} if overlay else {})}
        BundleRun(["inference.json", *overlay], "run", ids).start()
        masks[backend] = np.asarray(nib.load(out / "image_mask.nii.gz").dataobj)
    assert masks["pytorch"].any()
    assert (masks["pytorch"] != masks["openvino"]).mean() < 1e-3
    journal = "".join(file.read_text() for file in (tmp_path / "openvino").glob("journal*.jsonl"))
    assert "OpenVINO" in journal


def test_the_command_takes_a_backend_but_not_for_several_models() -> None:
    words = ["predict", "x", "-o", "y", "-m", "hippocampus", "--backend", "openvino"]
    line = CliRunner().invoke(app, [*words, "--show-command"]).output
    assert "backend.json" in line
    assert "--backend openvino" in line
    run = CliRunner().invoke(app, [*words, "-m", "hippocampus"])
    assert run.exit_code == 2
    assert "several models are averaged in PyTorch alone" in run.output
