"""MLflow records every workflow into a local database, and reports nothing to the internet."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_workflows import run


def recorded_metrics(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {key for (key,) in connection.execute("select distinct key from metrics")}


@pytest.mark.slow
def test_training_pretraining_and_evaluation_are_recorded(task, small_overlay, tmp_path):
    common = {"dataset_dir": str(task), "tracking": "mlflow"}
    weights = str(tmp_path / "model.pt")
    run(["pretrain.yaml"], small_overlay, "training", "pretraining", output_dir=str(tmp_path / "a"), **common)
    run(["train.json"], small_overlay, "training", output_dir=str(tmp_path / "b"), weights_file=weights, **common)
    names = ["train.json", "evaluate.json"]
    run(names, small_overlay, "evaluation", output_dir=str(tmp_path / "c"), weights_file=weights, **common)
    recorded = [recorded_metrics(tmp_path / folder / "mlruns.db") for folder in "abc"]
    assert {"train_loss", "val_loss"} <= recorded[0]
    assert {"train_loss", "val_mean_dice"} <= recorded[1]
    assert "mean_dice" in recorded[2]


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "expected"), [({}, "None"), ({"MLFLOW_DISABLE_TELEMETRY": "false"}, "active")])
def test_usage_is_not_reported_unless_asked_for(environment, expected):
    hidden = ("PYTEST_CURRENT_TEST", "CI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    script = (
        "import mlflow; from digar.cli.command import prepare_command; prepare_command();"
        "print('None' if mlflow.telemetry.get_telemetry_client() is None else 'active')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(expected), done.stderr
