"""The picture of a sequence: one command draws what a run of the config would see."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from digar.training.sequence_figure import draw_sequence, find_sample
from PIL import Image

from tests.conftest import ROOT


@pytest.mark.parametrize("token_order", ["raster", "volume"])
def test_a_sample_is_drawn_beside_its_patches(token_order, tmp_path):
    image = np.random.default_rng(0).random((8, 8, 16))
    draw_sequence(tmp_path / "page.png", image, 9, (4, 4, 2), token_order, "spatial", ["a", "b", "c", "d"])
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 990


class OneScan:
    def __len__(self) -> int:
        return 1

    def case(self, index: int) -> dict:
        return {"kind": "spatial"}


def test_a_kind_that_the_data_lack_is_said():
    assert find_sample(OneScan(), "spatial", 0) == 0
    with pytest.raises(ValueError, match="holds 0 contrast sequences: there is no number 0"):
        find_sample(OneScan(), "contrast", 0)


@pytest.mark.slow
def test_the_command_draws_from_the_config(task: Path, tmp_path: Path):
    settings = [f"cache_dir={tmp_path}/cache", "spacing=[4, 4, 4]", "sample_size=[16, 16, 16]"]
    command = [sys.executable, "-m", "digar", "sequence", str(task), str(tmp_path / "page.png")]
    command += [word for setting in settings for word in ("--set", setting)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "page.png").is_file()
