"""Options that contradict what weights were trained for are refused or warned of, in every workflow."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from digar.data.task import TrainedWith, read_task, write_task
from monai.bundle import ConfigWorkflow

from tests.conftest import ROOT, random_model
from tests.test_workflows import root_cause

WORKFLOWS = {"inference": ["inference.json"], "evaluation": ["train.json", "evaluate.json"]}
CONTRADICTIONS = {  # option to what the error says
    "spacing": ([4.0, 4.0, 4.0], "spacing: trained for 8 x 8 x 8 mm, not 4 x 4 x 4 mm"),
    "grid#spacing": ([4.0, 4.0, 4.0], "spacing: trained for 8 x 8 x 8 mm, not 4 x 4 x 4 mm"),
    "intensity_rule": ([0, 100], "intensity: trained for percentiles, not the window 0 to 100"),
    "intensity#rule": ([0, 100], "intensity: trained for percentiles, not the window 0 to 100"),
    "mirroring": ([1], "mirroring: the network was trained without mirrored images along axes [1]"),
    "inferer#mirroring": ([0, 1], "mirroring: the network was trained without mirrored images along axes [1]"),
    "attention": ("full+sequence", "network: trained for"),
    "dilation": (1, "network: trained for"),
    "num_classes": (3, "labels: trained for"),
}


@pytest.fixture(scope="module")
def model(small_overlay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that saw images mirrored left to right."""
    folder = random_model(tmp_path_factory.mktemp("model"), small_overlay).parent
    task = read_task(folder / "task.yaml")
    write_task(dataclasses.replace(task, trained_with=TrainedWith(3, flips=[0])), folder / "task.yaml")
    return folder


def begin(kind: str, model: Path, data: Path, folder: Path, **options: object) -> None:
    """Prepare a run by the configs alone: the model's task tells the rest."""
    data = data / "imagesTs" if kind == "inference" else data
    ConfigWorkflow(
        [str(ROOT / "configs" / name) for name in WORKFLOWS[kind]], str(ROOT / "configs/metadata.json"), False,
        workflow_type=kind, bundle_root=str(ROOT), dataset_dir=str(data), output_dir=str(folder),
        weights_file=str(model), **options,
    ).initialize()  # fmt: skip


@pytest.mark.parametrize("kind", WORKFLOWS)
def test_a_models_folder_is_all_that_a_workflow_needs(kind, model, task, tmp_path, caplog):
    begin(kind, model, task, tmp_path, mirroring=[0], roi_size=[16, 16, 24])
    assert "crop: trained for 16 x 16 x 16, not 16 x 16 x 24: masks may be worse" in caplog.text


@pytest.mark.parametrize("option", CONTRADICTIONS)
@pytest.mark.parametrize("kind", WORKFLOWS)
def test_what_would_spoil_the_masks_is_refused(kind, option, model, task, tmp_path):
    value, message = CONTRADICTIONS[option]
    with pytest.raises(RuntimeError) as caught:
        begin(kind, model, task, tmp_path, **{option: value})
    assert message in str(root_cause(caught.value))
    assert "leave these options out, or name other weights" in str(root_cause(caught.value))


@pytest.mark.parametrize("kind", WORKFLOWS)
def test_an_intensity_that_no_task_can_hold_is_refused(kind, model, task, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        begin(kind, model, task, tmp_path, intensity={"_target_": "ScaleIntensityd", "keys": "image"})
    assert "intensity: a ScaleIntensityd is not one of the rules that a task can hold" in str(root_cause(caught.value))


def test_another_task_and_further_weights_are_compared_too(model, task, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        begin("inference", model, task, tmp_path, task=str(ROOT / "models/hippocampus"))
    assert "labels: trained for" in str(root_cause(caught.value))
    other = Path(shutil.copytree(model, tmp_path / "other"))
    changed = dataclasses.replace(read_task(model / "task.yaml"), spacing=(2.0, 2.0, 2.0))
    write_task(changed, other / "task.yaml")
    with pytest.raises(RuntimeError) as caught:
        begin("inference", model, task, tmp_path, ensemble=[str(other)])
    assert "spacing: trained for 2 x 2 x 2 mm, not 8 x 8 x 8 mm" in str(root_cause(caught.value))
