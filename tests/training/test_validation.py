"""A training is validated at its end too; the mean Dice is a number exactly where a held-out case holds a label."""

import math

import pytest
import torch
from digar.training.validation import Validation, ValidationDice
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator


def dice(labels: list[torch.Tensor], predictions: list[torch.Tensor]) -> float:
    batches = [[{"pred": p, "label": y}] for p, y in zip(predictions, labels, strict=True)]
    evaluator = Engine(lambda engine, batch: batch)
    ValidationDice(num_classes=3).attach(evaluator, "dice")
    return evaluator.run(batches).metrics["dice"]


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


def validated_epochs(epochs: int, interval: int, cases: int) -> list[int]:
    """When a training of empty steps is validated."""
    data = [{"image": torch.zeros(1, 2), "label": torch.zeros(1, 2)} for _ in range(cases)]
    evaluator = SupervisedEvaluator(device="cpu", val_data_loader=DataLoader(data), network=torch.nn.Identity())
    trainer, seen = Engine(lambda engine, batch: None), []
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: seen.append(trainer.state.epoch))
    Validation(evaluator, interval).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return seen


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"), [(4, 2, [2, 4]), (5, 2, [2, 4, 5]), (2, 50, [2]), (3, 1, [1, 2, 3])]
)
def test_a_training_is_validated_every_few_epochs_and_at_its_end(epochs, interval, expected):
    assert validated_epochs(epochs, interval, cases=1) == expected


def test_without_cases_nothing_is_validated():
    assert validated_epochs(2, 1, cases=0) == []


def test_an_interval_of_zero_is_refused_by_its_option():
    with pytest.raises(ValueError, match="val_interval is 0: it must be a number of epochs"):
        validated_epochs(2, 0, cases=1)
