"""Small phantom studies and a small network, shared by the tests."""

import dataclasses
import importlib.util
import json
import locale
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from digar.data.phantoms import write_phantoms
from digar.data.task import TrainedWith, write_task
from monai.bundle import ConfigParser

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = str(ROOT / "scripts")  # for the modules that tests start
collect_ignore = ["test_digar_hippocampus_mri_segmentation_dist.py"]  # started where the zoo does: test_release.py
if not importlib.util.find_spec("monailabel"):
    collect_ignore.append("label")  # an environment of its own: make test-label
torch.set_num_threads(1)  # the volumes are small: several threads only wait for each other
HANGING = 900  # seconds after which processes that wait for each other are asked where they stand
SMALL = {
    "num_classes": 7,
    "spacing": [8.0, 8.0, 8.0],
    "roi_size": [16, 16, 16],
    "sample_size": [8, 8, 8],
    "patch_size": 4,
    "attention": "local+grid",
    "network_size": {"hidden_size": 24, "num_layers": 2, "num_heads": 2},
    "batch_size": 2,
    "num_workers": 0,
    "max_epochs": 1,
}


def random_model(folder: Path, overlay: str, seed: int = 0, **ids: object) -> Path:
    """Weights of a network that saw nothing, and a task that says it saw mirrored images.

    Args:
        folder: of the model.
        overlay: config over ``inference.json``.
        seed: of the weights.
        ids: of the config.

    Returns:
        The weights.
    """
    torch.manual_seed(seed)
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs/inference.json"), overlay]))
    parser.update({"bundle_root": str(ROOT), "task": str(ROOT / "models"), **ids})
    network = parser.get_parsed_content("network_def")
    torch.nn.init.normal_(network.head.out.conv.conv.bias)
    torch.save(network.state_dict(), folder / "model.pt")
    seen = TrainedWith(images=1, flips=[0, 1, 2])
    write_task(dataclasses.replace(parser.get_parsed_content("run_task"), trained_with=seen), folder / "task.yaml")
    return folder / "model.pt"


@pytest.fixture(autouse=True)
def kept_locale() -> Iterator[None]:
    """GDCM, by which tests write DICOM, leaves the C locale behind, in which every text file is taken for ASCII."""
    former = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, former)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom MSD task of 5 training and 2 test studies."""
    folder = tmp_path_factory.mktemp("phantoms") / "task"
    write_phantoms(folder, num_training=5, num_test=2, seed=1)
    return folder


@pytest.fixture(scope="session")
def small_overlay(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config overlay that makes every workflow small: its path."""
    folder = tmp_path_factory.mktemp("overlay")
    file = folder / "small.json"
    file.write_text(json.dumps({**SMALL, "cache_dir": str(folder / "cache")}))
    return str(file)
