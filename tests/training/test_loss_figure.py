"""Curves of runs as a picture."""

import pytest
from digar.training.loss_figure import draw_curves, read_curves
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "scratch"
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step in range(1, 31):
            writer.add_scalar("train_loss", 1 / step, step)
        for epoch in (1, 2, 3):
            writer.add_scalar("val_mean_dice", 0.2 * epoch, epoch)
    return folder


def test_every_point_of_a_curve_is_read(run):
    steps, values = read_curves(run)["val_mean_dice"]
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_runs_are_drawn_into_one_picture(run, tmp_path):
    draw_curves([run], tmp_path / "pictures/curves.png")
    with Image.open(tmp_path / "pictures/curves.png") as picture:
        assert picture.width > 2 * picture.height


def test_a_run_without_curves_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no curves"):
        read_curves(tmp_path)
