"""An exported file computes what its network does, for batches of any size, and says what it is for."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from digar import __version__
from digar.cli.app import app
from digar.data.task import Network, Task, parse_task, read_task, to_plain, write_task
from digar.networks.exported import load_exported
from digar.networks.exporting import export_network
from digar.networks.of_task import segmentation_network
from monai.data import load_net_with_metadata
from torch import nn
from typer.testing import CliRunner

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
