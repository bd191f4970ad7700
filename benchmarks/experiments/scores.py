"""Results of finished jobs, and what they say of each patient."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.metrics import compute_roc_auc
from torch import tensor

from benchmarks.experiments.protocol import Job, Protocol
from benchmarks.experiments.statistics import Scores

Row = dict[str, Any]
RESULTS = Path(__file__).parents[2] / "docs/experiments/data"  # committed, a folder for each experiment


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a folder, by the name of the job."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def patient_scores(rows: Sequence[Row]) -> dict[str, float]:
    """One number per patient: the mean Dice over its cases and labels, or whether its class was found (1 or 0).

    The class found is the one with the largest probability, averaged over the patient's volumes.
    """
    by_patient: dict[str, list[Row]] = {}
    for row in rows:
        by_patient.setdefault(row["patient"], []).append(row)
    score = _mean_dice if "dice" in rows[0] else _found
    return {patient: score(own) for patient, own in by_patient.items()}


def _mean_dice(rows: Sequence[Row]) -> float:
    return float(np.mean([row["dice"] for row in rows if row["dice"] is not None]))


def _found(rows: Sequence[Row]) -> float:
    probabilities = mean_probabilities(rows)
    return float(max(probabilities, key=lambda name: probabilities[name]) == rows[0]["class"])


def mean_probabilities(rows: Sequence[Row]) -> dict[str, float]:
    """Each class's probability, averaged over a patient's volumes."""
    classes = [key for key in rows[0] if key not in ("case", "class", "patient")]
    return {name: float(np.mean([row[name] for row in rows])) for name in classes}


def macro_auc(rows: list[dict[str, Any]]) -> float:
    """The mean over the classes of each one's AUC against the others, by patient; of two classes it is the AUC."""
    by_patient: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_patient.setdefault(row["patient"], []).append(row)
    probabilities = [mean_probabilities(own) for own in by_patient.values()]
    truth = [own[0]["class"] for own in by_patient.values()]
    aucs = [
        compute_roc_auc(tensor([p[name] for p in probabilities]), tensor([float(c == name) for c in truth]))
        for name in sorted(set(truth))
    ]
    return float(np.mean(aucs))


def runs_of(results: dict[str, dict[str, Any]], arm: str, labels: int | None, key: str = "scores") -> Scores:
    """The scores of an arm's finished runs, by draw and seed."""
    return {
        (result["draw"], result["seed"]): patient_scores(result[key])
        for result in results.values()
        if result["kind"] == "run" and result["arm"] == arm and result["labels"] == labels and key in result
    }


def tuned_rates(protocol: Protocol, arm: str, results: dict[str, dict[str, Any]]) -> dict[float, float]:
    """The mean score on the tuning patients at each rate that an arm has tried."""
    arm = protocol.arms[arm].tuned_as or arm
    scores = {}
    for rate in protocol.rates:
        result = results.get(Job("tuning", arm, protocol.tuned_with, rate=rate).name)
        if result is not None:
            scores[rate] = float(np.mean(list(patient_scores(result["scores"]).values())))
    return scores


def best_rate(protocol: Protocol, arm: str, state: Path) -> float:
    """The rate that scored best on the tuning patients; the only one where one is given.

    Raises:
        FileNotFoundError: a rate has not been tried.
    """
    if len(protocol.rates) == 1:
        return protocol.rates[0]
    scores = tuned_rates(protocol, arm, read_results(state / "results"))
    if len(scores) < len(protocol.rates):
        raise FileNotFoundError(f"{protocol.name}: the rate of {arm} is not tuned yet, only {sorted(scores)} are tried")
    return max(scores, key=lambda rate: scores[rate])
