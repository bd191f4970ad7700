"""What a training writes of itself: the range of its images, its mirrored axes, the names of its labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from digar.data.facts import CaseFacts
from digar.data.task import TrainedWith, parse_task, write_task
from digar.training.trained_task import flipped_axes, joined, trained_task
from monai.handlers import CheckpointLoader
from monai.transforms import RandAxisFlipd, RandFlipd, RandGaussianNoised

TASK = parse_task(
    {
        "name": "T",
        "channels": ["MR"],
        "labels": {1: "label 1", 2: "core"},
        "spacing": 1,
        "crop": 8,
        "patch": 4,
    }
)


def facts(spacing: tuple[float, ...], shape: tuple[int, ...], percentiles: list[float]) -> CaseFacts:
    return CaseFacts(np.array(spacing), np.array(shape), np.array([percentiles]), np.empty((1, 0)), [])


FACTS = [facts((2.0, 1.0, 1.0), (10, 20, 30), [0, 5, 9]), facts((1.0, 1.0, 3.0), (10, 20, 30), [1, 4, 8])]


def test_the_range_of_the_images_is_written_with_their_axes_sorted():
    seen = trained_task(TASK, FACTS).trained_with
    assert seen.images == 2
    assert seen.spacing_mm == [[1, 1, 2], [1, 1, 3]]
    assert seen.extent_mm == [[10, 20, 30], [20, 20, 90]]
    assert seen.intensity_percentiles == [[[0, 1], [4, 5], [8, 9]]]


@pytest.mark.parametrize(
    ("transforms", "axes"),
    [
        ([], []),
        ([RandGaussianNoised("image")], []),
        ([RandFlipd("image", prob=0.5, spatial_axis=2), RandFlipd("image", prob=0.5, spatial_axis=0)], [0, 2]),
        ([RandFlipd("image", prob=0.0, spatial_axis=2)], []),
        ([RandFlipd("image", prob=0.5)], [0, 1, 2]),
        ([RandFlipd("image", prob=0.5, spatial_axis=[0, -1])], [0, 2]),
        ([RandAxisFlipd("image", prob=0.5)], [0, 1, 2]),
    ],
)
def test_the_mirrored_axes_are_those_of_the_augmentations(transforms, axes):
    assert flipped_axes(transforms) == axes


def test_what_cannot_be_learned_from_the_labels_is_said_before_the_first_step(caplog):
    trained_task(TASK, [FACTS[0]._replace(labels=[1]), FACTS[1]])
    assert "label 2 (core) occurs in no case: it cannot be learned" in caplog.text
    assert "1 of 2 cases contain no label at all" in caplog.text
    trained_task(TASK, FACTS)
    assert "all labels contain only background: nothing can be learned from them" in caplog.text


def test_labels_without_names_take_those_of_the_data(tmp_path: Path):
    for name in ("image.nii", "label.nii"):
        (tmp_path / name).touch()
    entry = {"image": "image.nii", "label": "label.nii"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"2": "other", "1": "rim"}, "training": [entry]}))
    assert trained_task(TASK, FACTS, dataset_dir=tmp_path).labels == {1: "rim", 2: "core"}
    assert trained_task(TASK, FACTS, dataset_dir=tmp_path / "none").labels == TASK.labels


def test_a_training_that_goes_on_from_weights_has_seen_their_images_too(tmp_path: Path):
    network = torch.nn.Linear(1, 1)
    write_task(trained_task(TASK, FACTS, [RandFlipd("image", prob=1)]), tmp_path / "task.yaml")
    loader = CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})
    wider = [facts((0.5, 1.0, 1.5), (10, 10, 10), [-1, 4, 9])]
    seen = trained_task(TASK, wider, [RandFlipd("image", prob=1, spatial_axis=0)], [loader]).trained_with
    assert (seen.images, list(seen.flips)) == (3, [0])
    assert seen.spacing_mm == [[0.5, 1, 1.5], [1, 1.0, 3]]
    assert seen.extent_mm == [[5, 10, 15], [20, 20, 90]]
    assert seen.intensity_percentiles == [[[-1, 1], [4, 5], [8, 9]]]


def test_what_was_seen_in_other_channels_is_not_joined():
    before, after = TrainedWith(5, (), intensity_percentiles=[[[0, 1]] * 3]), TrainedWith(1)
    assert joined(before, after).intensity_percentiles == []
