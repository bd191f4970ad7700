"""Scores as tables: one row per case and label, and a summary of them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digar.evaluation.metrics import METRICS
from digar.evaluation.segmentation import Score
from digar.volumes.files import write_rows

MEAN = "mean"  # stands as a label for the mean over a case's labels
SUMMARY_COLUMNS = (
    *("label", "metric", "mean", "std", "median", "worst", "worst_case", "cases"),
    *("both_empty", "truth_empty", "prediction_empty"),
)


def case_columns() -> list[str]:
    """The columns of ``cases.csv``."""
    return ["case", "label", *METRICS, "empty"]


def defined_mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def case_means(scores: Sequence[Score]) -> list[Score]:
    """For each case the mean of every averaged metric over the labels that define it."""
    by_case: dict[str, list[Score]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score)
    averaged = [name for name, metric in METRICS.items() if metric.averaged]
    return [
        Score(case, MEAN, {name: defined_mean(score[name] for score in own) for name in averaged})
        for case, own in by_case.items()
    ]


def summarise(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A row per label and metric, the mean over labels last: mean, spread, median and worst over the cases.

    Cases where a metric is undefined are left out of it; ``cases`` counts those that are in. The empty masks of a label
    are counted beside it.
    """
    rows = []
    by_label: dict[str, list[Score]] = {}
    for score in [*scores, *case_means(scores)]:
        by_label.setdefault(score.label, []).append(score)
    for label, own in by_label.items():
        counts = {f"{kind}_empty": sum(s.empty == kind for s in own) for kind in ("both", "truth", "prediction")}
        for name, metric in METRICS.items():
            if label == MEAN and not metric.averaged:
                continue
            defined = [score for score in own if not math.isnan(score[name])]
            row: dict[str, Any] = dict.fromkeys(SUMMARY_COLUMNS, "") | {"label": label, "metric": name}
            row |= {"cases": len(defined)} | (counts if label != MEAN else {})
            if defined:
                values = np.array([score[name] for score in defined])
                row |= {"mean": values.mean(), "std": values.std(), "median": np.median(values)}
                if metric.better is not None:
                    worst = defined[int(np.argmax([metric.badness(score[name]) for score in defined]))]
                    row |= {"worst": worst[name], "worst_case": worst.case}
            rows.append(row)
    return rows


def summary_lines(summary: Sequence[dict[str, Any]]) -> list[str]:
    """The summary for the screen: a line per label and metric."""
    lines = [f"{'label':<20} {'metric':<16} {'mean':>8} {'median':>8} {'worst':>8}  worst case"]
    for row in summary:
        numbers = " ".join(f"{row[key]:8.3f}" if row[key] != "" else f"{'':8}" for key in ("mean", "median", "worst"))
        lines.append(f"{row['label']:<20} {row['metric']:<16} {numbers}  {row['worst_case']}")
    for row in summary:
        if row["metric"] == "dice" and row["label"] != MEAN:
            both, truth, prediction = (row[f"{kind}_empty"] for kind in ("both", "truth", "prediction"))
            if both or truth or prediction:
                lines.append(
                    f"{row['label']}: not scored in {both} cases (in neither mask); Dice 0 and no distance in "
                    f"{truth} cases (not in the truth) and {prediction} cases (not in the prediction)"
                )
    return lines


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file whole or not at all; numbers have six digits, NaN becomes an empty field."""
    write_rows(path, [columns, *([_field(row[column]) for column in columns] for row in rows)])


def _field(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_scores(folder: str | Path, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Write ``cases.csv`` and ``summary.csv`` into a folder and return the summary."""
    folder = Path(folder)
    summary = summarise(scores)
    rows = sorted([*scores, *case_means(scores)], key=lambda score: score.case)  # stable: the mean stays last
    fields = ({"case": s.case, "label": s.label, **{name: s[name] for name in METRICS}, "empty": s.empty} for s in rows)
    write_table(folder / "cases.csv", case_columns(), fields)
    write_table(folder / "summary.csv", SUMMARY_COLUMNS, summary)
    return summary
