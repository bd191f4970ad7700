"""AUC, recall, accuracy and confusion matrix as counted by hand."""

import math

import pytest
import torch
from digar.evaluation.classification import (
    Classified,
    confusion_matrix,
    probabilities_and_classes,
    summarise_classes,
)

CASES = [
    Classified("a", 0, [0.9, 0.1]),
    Classified("b", 0, [0.4, 0.6]),
    Classified("c", 1, [0.7, 0.3]),
    Classified("d", 1, [0.2, 0.8]),
    Classified("e", 1, [0.1, 0.9]),
]


def test_rows_of_the_confusion_matrix_are_the_true_classes():
    assert confusion_matrix(CASES, 2).tolist() == [[1, 1], [1, 2]]


def test_auc_is_the_share_of_pairs_in_the_right_order():
    first, second, both = summarise_classes(CASES, ["benign", "malignant"])
    # pairs (malignant, benign): c > a, c < b, d > a, d > b, e > a, e > b
    assert second["auc"] == first["auc"] == both["auc"] == pytest.approx(5 / 6)
    assert (first["recall"], second["recall"]) == (0.5, pytest.approx(2 / 3))
    assert both["accuracy"] == pytest.approx(3 / 5)


def test_a_class_without_a_case_has_no_auc():
    rows = summarise_classes([Classified("a", 0, [0.9, 0.1])], ["benign", "malignant"])
    assert math.isnan(rows[0]["auc"])
    assert math.isnan(rows[1]["recall"])
    assert rows[2]["accuracy"] == 1.0


def test_probabilities_add_up_and_the_truth_is_one_hot():
    output = {"pred": torch.tensor([[1.0, 2.0, 3.0]]), "label": torch.tensor([2])}
    probabilities, truth = probabilities_and_classes(output)
    assert probabilities.sum().item() == pytest.approx(1)
    assert truth.tolist() == [[0, 0, 1]]
