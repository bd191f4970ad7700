"""The mean Dice of a validation is a number exactly where a held-out case holds a label."""

import math

import pytest
import torch
from digar.training.validation_dice import ValidationDice
from monai.networks import one_hot


def dice(labels: list[torch.Tensor], predictions: list[torch.Tensor]) -> float:
    metric = ValidationDice(include_background=False, save_details=False)
    metric.reset()
    for label, prediction in zip(labels, predictions, strict=True):
        metric.update([[one_hot(prediction, 3, dim=0)], [one_hot(label, 3, dim=0)]])
    return metric.compute()


def volume(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 2, 2, 1)


def test_background_alone_has_no_dice_whatever_is_predicted():
    empty, full = volume(0, 0, 0, 0), volume(1, 0, 2, 0)
    assert math.isnan(dice([empty, empty], [empty, full]))


def test_cases_without_a_label_and_labels_without_a_case_do_not_count():
    labels = [volume(1, 1, 0, 0), volume(0, 0, 0, 0)]
    predictions = [volume(1, 0, 0, 0), volume(2, 2, 2, 2)]
    assert dice(labels, predictions) == pytest.approx(2 / 3)


def test_a_label_that_is_missed_everywhere_scores_zero():
    assert dice([volume(1, 2, 0, 0)], [volume(0, 0, 0, 0)]) == 0
