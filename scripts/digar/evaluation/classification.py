"""Scores of classified volumes: AUC, accuracy, confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from monai.networks import one_hot
from torch import Tensor


class Classified(NamedTuple):
    """A volume, the index of its class, and the network's probability of every class."""

    name: str
    label: int
    probabilities: list[float]


def probabilities_and_classes(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the AUC takes of an engine's output: softmax ``(B, classes)``, and the truth one-hot."""
    logits = output["pred"].float()
    return logits.softmax(dim=1), one_hot(output["label"][:, None], logits.shape[1])


def logits_and_classes(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the accuracy takes of an engine's output: logits ``(B, classes)`` and classes ``(B,)``."""
    return output["pred"], output["label"]


def confusion_matrix(cases: Sequence[Classified], num_classes: int) -> np.ndarray:
    """Counts ``(true class, predicted class)``; the prediction is the most probable class."""
    matrix = np.zeros((num_classes, num_classes), int)
    for case in cases:
        matrix[case.label, int(np.argmax(case.probabilities))] += 1
    return matrix


def summarise_classes(cases: Sequence[Classified], classes: Sequence[str]) -> list[dict[str, Any]]:
    """AUC (one class against the rest) and recall of every class, and their means; accuracy in the last row.

    NaN where a class has no case, or all of them.
    """
    matrix = confusion_matrix(cases, len(classes))
    probabilities = torch.tensor([case.probabilities for case in cases])
    truth = one_hot(torch.tensor([[case.label] for case in cases]), len(classes))
    occurs = matrix.sum(axis=1)
    rows = []
    for index, name in enumerate(classes):
        defined = 0 < occurs[index] < len(cases)
        auc = np.asarray(compute_roc_auc(probabilities[:, index], truth[:, index])).item() if defined else math.nan
        recall = matrix[index, index] / occurs[index] if occurs[index] else float("nan")
        rows.append({"class": name, "cases": int(occurs[index]), "auc": auc, "recall": float(recall), "accuracy": ""})
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("auc", "recall")}
    accuracy = float(matrix.trace() / matrix.sum())
    return [*rows, {"class": "all", "cases": len(cases), **means, "accuracy": accuracy}]
