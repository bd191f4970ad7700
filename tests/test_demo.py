"""The demo as a newcomer runs it."""

import csv
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_demo_learns_the_organs_and_tells_the_twins_apart(tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (ROOT / "models").rglob("*")}
    command = ["make", "demo", f"DEMO={tmp_path / 'demo'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    lines = result.stdout.strip().splitlines()
    mean = re.fullmatch(r"mean Dice (\d\.\d{3})", lines[-1])
    assert mean, lines[-1]
    assert float(mean[1]) >= 0.80
    with (tmp_path / "demo/scores/summary.csv").open(newline="") as stream:
        dice = {row["label"]: float(row["mean"]) for row in csv.DictReader(stream) if row["metric"] == "dice"}
    assert min(dice["twin_near"], dice["twin_far"]) >= 0.75  # the twins, which intensity cannot tell apart
    assert (tmp_path / "demo/scores/worst.png").is_file()
    assert {file: file.stat().st_mtime_ns for file in (ROOT / "models").rglob("*")} == before
