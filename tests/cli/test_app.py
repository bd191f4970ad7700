"""The ``digar`` command: what each sub-command runs, and what it says."""

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from digar.cli.app import app
from digar.cli.bundle import bundle_root, find_weights, read_settings
from digar.evaluation.metrics import METRICS
from digar.evaluation.segmentation import Score
from digar.evaluation.tables import write_scores
from typer.testing import CliRunner

from tests.conftest import ROOT

COMMANDS = ["plan", "pretrain", "train", "evaluate", "predict", "report", "embed", "compare", "folds", "lesions",
            "sequence", "curves", "convert", "export", "phantoms", "dicom-seg", "serve"]  # fmt: skip


def line(*words: str) -> list[str]:
    """The words of the line that ``--show-command`` prints."""
    result = CliRunner().invoke(app, [*words, "--show-command"])
    assert result.exit_code == 0, result.output
    return shlex.split(result.output)


def option(words: list[str], name: str) -> str:
    return words[words.index(f"--{name}") + 1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: digar {command}" in result.output


@pytest.mark.parametrize(("own", "used"), [(None, "1000"), ("7", "7")])
def test_threads_that_wait_sleep_soon_unless_told_otherwise(own: str | None, used: str) -> None:
    given = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    given |= {} if own is None else {"GOMP_SPINCOUNT": own}
    script = "import os, sys; sys.argv = ['digar', '--version']; from digar.cli.app import main\ntry: main()\n"
    script += "except SystemExit: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True, check=True)
    assert printed.stdout.split()[-2:] == [used, "False"]


def test_a_mistyped_command_is_refused_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["tarin"])
    assert result.exit_code == 2
    assert "Did you mean 'train'" in result.output


def test_training_is_the_bundles_run_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = line("train", "data", "-o", "my run, second", "--task", "task.yaml", "--fold", "2", "--set", "max_epochs=3")
    assert words[:5] == ["python", "-m", "monai.bundle", "run", "training"]
    assert option(words, "config_file") == str(ROOT / "configs/train.json")
    assert option(words, "dataset_dir") == str(tmp_path / "data")
    assert option(words, "output_dir") == str(tmp_path / "my run, second")
    assert option(words, "task") == str(tmp_path / "task.yaml")
    assert (option(words, "fold"), option(words, "max_epochs")) == ("2", "3")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_backend_is_an_overlay_and_takes_one_model(command: str) -> None:
    words = line(command, "data", "-o", "out", "--backend", "onnxruntime")
    assert str(ROOT / "configs/backend.json") in option(words, "config_file")
    assert option(words, "backend") == "onnxruntime"
    several = ["-m", "hippocampus", "-m", "hippocampus", "--backend", "openvino"]
    refused = CliRunner().invoke(app, [command, "data", "-o", "out", *several])
    assert refused.exit_code == 2
    assert "several models are averaged in PyTorch alone" in refused.output


@pytest.mark.parametrize(("seconds", "told"), [(1.0, False), (1000.0, True)])
def test_a_plan_of_days_says_how_to_get_a_shorter_one(
    seconds: float, told: bool, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digar.training.pace.seconds_per_step", lambda *_: seconds)
    result = CliRunner().invoke(app, ["plan", str(task), "-o", str(tmp_path / "task.yaml"), "--memory", "2"])
    assert result.exit_code == 0, result.output
    assert ("shorter: smaller crops (--memory 0.5), larger voxels (--spacing), or a GPU" in result.output) == told


def all_folds(data: Path, *more: str) -> list[list[str]]:
    result = CliRunner().invoke(app, ["train", str(data), "-o", "/out", "--folds", "all", "--show-command", *more])
    assert result.exit_code == 0, result.exception
    return [shlex.split(row) for row in result.output.splitlines()]


def test_all_folds_train_one_after_the_other_into_folders_of_their_own(task: Path) -> None:
    lines = all_folds(task)
    assert [option(words, "fold") for words in lines] == ["0", "1", "2", "3", "4"]
    assert [option(words, "output_dir") for words in lines] == [f"/out/fold_{fold}" for fold in range(5)]


def test_the_folds_are_those_of_the_data_else_those_of_the_tasks_share(task: Path, tmp_path: Path) -> None:
    planned = yaml.safe_load((ROOT / "models/task.yaml").read_text())
    planned["training"]["validation_share"] = 0.5
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(planned))
    assert [option(words, "fold") for words in all_folds(task, "--task", str(tmp_path / "task.yaml"))] == ["0", "1"]
    pairs = zip(sorted((task / "imagesTr").iterdir()), sorted((task / "labelsTr").iterdir()), strict=True)
    cases = [{"image": str(i), "label": str(s), "fold": 2 * (n % 2)} for n, (i, s) in enumerate(pairs)]
    (tmp_path / "list.json").write_text(json.dumps({"training": cases}))
    assert [option(words, "fold") for words in all_folds(tmp_path / "list.json")] == ["0", "2"]


def test_predict_takes_the_shipped_model_unless_told_otherwise(tmp_path: Path) -> None:
    assert option(line("predict", "x", "-o", "y"), "weights_file") == str(find_weights(None))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.pt").write_bytes(b"")
    assert option(line("predict", "x", "-o", "y", "-m", str(model)), "weights_file") == str(model / "model.pt")


def test_several_models_are_an_ensemble(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pt", "b.pt")]
    for file in files:
        file.write_bytes(b"")
    words = line("predict", "x", "-o", "y", "-m", str(files[0]), "-m", str(files[1]))
    assert option(words, "weights_file") == str(files[0])
    assert json.loads(option(words, "ensemble")) == [str(files[1])]


def test_an_unknown_model_is_refused_with_what_may_stand_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no model hipocampus: give a folder .* shipped one"):
        find_weights("hipocampus")


def test_settings_are_yaml() -> None:
    assert read_settings(["a=1", "b#c=[1, 2]", "d=$1 + 1", "e=x=y"]) == {
        "a": 1,
        "b#c": [1, 2],
        "d": "$1 + 1",
        "e": "x=y",
    }


@pytest.mark.parametrize(("setting", "words"), [("max_epochs", "write --set id=value"), ("a=[1", "is not YAML")])
def test_a_setting_of_another_form_is_refused(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_settings([setting])


def test_the_clone_is_the_bundle() -> None:
    assert bundle_root() == ROOT


def digar(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "digar", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_an_error_of_a_run_is_one_line_and_the_log_holds_the_rest(tmp_path: Path) -> None:
    result = digar("predict", "absent", "-o", "masks", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"ERROR FileNotFoundError: {tmp_path}/absent does not exist")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" in (tmp_path / "masks/log.txt").read_text()


def test_predict_writes_masks_from_any_folder_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "my images, new").mkdir()
    volume = np.random.default_rng(0).normal(100, 20, (35, 50, 35)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "my images, new/crop.nii.gz")
    result = digar("predict", "my images, new", "-o", "masks", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert nib.load(tmp_path / "masks/crop_mask.nii.gz").shape == volume.shape
    assert result.stdout.splitlines()[0] == "segmenting my images, new"
    assert "report: masks/report.html" in result.stdout
    assert "parsing config_file" not in result.stderr


class FakeHub:
    """The Hugging Face hub's library with one repository, and what was asked of it."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.asked: list[tuple] = []
        self.constants = types.SimpleNamespace(ENDPOINT="https://hub.example")

    def snapshot_download(self, repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((repo_id, revision, allow_patterns))
        return str(self.repository)


@pytest.mark.parametrize("place", ["", "models"])
@pytest.mark.parametrize(("name", "revision"), [("hf:clinic/heart", None), ("hf:clinic/heart@v1.2", "v1.2")])
def test_a_model_on_the_hub_is_fetched_when_it_is_named(name, revision, place, tmp_path, monkeypatch, capsys):
    (tmp_path / place).mkdir(exist_ok=True)
    for file in ("model.pt", "task.yaml"):
        (tmp_path / place / file).write_bytes(b"")
    hub = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find_weights(name) == tmp_path / place / "model.pt"
    assert hub.asked == [("clinic/heart", revision, ["model.pt", "task.yaml", "models/model.pt", "models/task.yaml"])]
    assert capsys.readouterr().out.startswith("fetching clinic/heart")


def test_a_repository_without_a_model_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"hf:clinic/heart has no model\.pt with a task\.yaml"):
        find_weights("hf:clinic/heart")


@pytest.mark.parametrize("name", ["hf:", "hf:heart", "hf:clinic/heart@", "hf:../../etc/passwd", "hf:a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="write hf:OWNER/NAME"):
        find_weights(name)


def test_without_the_hubs_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="pip install huggingface_hub"):
        find_weights("hf:clinic/heart")


def test_folds_and_lesions_write_their_tables(task: Path, tmp_path: Path) -> None:
    table = tmp_path / "lesions.csv"
    result = CliRunner().invoke(app, ["lesions", str(task), str(table)])
    assert result.exit_code == 0, result.output
    assert f"{len(table.read_text().splitlines()) - 1} structures in" in result.output

    evaluations = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(evaluations):
        write_scores(folder, [Score(f"case_{number}", "label 1", dict.fromkeys(METRICS, 0.5), "")])
    result = CliRunner().invoke(app, ["folds", *map(str, evaluations), "-o", str(tmp_path / "all")])
    assert result.exit_code == 0, result.output
    assert "2 cases of 2 evaluations" in result.output
    assert (tmp_path / "all/summary.csv").is_file()
