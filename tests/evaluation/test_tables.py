"""Tables of scores: means over defined scores only, the worst by the metric's own sense, empty masks counted."""

import csv
import math

import pytest
from digar.evaluation.segmentation import Score
from digar.evaluation.tables import MEAN, case_means, summarise, summary_lines, write_scores

SCORES = [
    Score("a", "head", {"dice": 0.9, "hd95_mm": 2.0, "volume_error_ml": 0.5, "volume_ml": 1.0}),
    Score("a", "tail", {"dice": 0.5, "hd95_mm": 6.0, "volume_error_ml": -0.2, "volume_ml": 2.0}),
    Score("b", "head", {"dice": 0.0, "volume_error_ml": 0.1, "volume_ml": 0.1}, empty="truth"),
    Score("b", "tail", {"dice": 0.7, "hd95_mm": 3.0, "volume_error_ml": -0.7, "volume_ml": 3.0}),
    Score("c", "head", {"dice": 0.8, "hd95_mm": 1.0, "volume_error_ml": 0.0, "volume_ml": 4.0}),
    Score("c", "tail", empty="both"),
]


def row(label: str, metric: str) -> dict:
    (found,) = [r for r in summarise(SCORES) if r["label"] == label and r["metric"] == metric]
    return found


def test_the_mean_of_a_case_is_over_the_labels_that_are_defined():
    means = {mean.case: mean for mean in case_means(SCORES)}
    assert means["a"]["dice"] == pytest.approx(0.7)
    assert means["b"]["hd95_mm"] == 3.0
    assert means["c"]["dice"] == 0.8
    assert math.isnan(means["a"]["volume_ml"])


def test_the_summary_gives_mean_median_and_worst_with_its_case():
    dice = row("head", "dice")
    assert dice["mean"] == pytest.approx(1.7 / 3)
    assert (dice["median"], dice["worst"], dice["worst_case"], dice["cases"]) == (0.8, 0.0, "b", 3)
    distance = row("tail", "hd95_mm")
    assert (distance["worst"], distance["worst_case"], distance["cases"]) == (6.0, "a", 2)
    volume = row("tail", "volume_error_ml")
    assert (volume["worst"], volume["worst_case"]) == (-0.7, "b")
    assert row("tail", "volume_ml")["worst"] == ""


def test_empty_masks_are_counted_and_told():
    assert [row("head", "dice")[f"{kind}_empty"] for kind in ("both", "truth", "prediction")] == [0, 1, 0]
    assert [row("tail", "dice")[f"{kind}_empty"] for kind in ("both", "truth", "prediction")] == [1, 0, 0]
    lines = summary_lines(summarise(SCORES))
    assert "tail: not scored in 1 cases" in "\n".join(lines)
    assert "1 cases (not in the truth)" in "\n".join(lines)


def test_the_mean_over_labels_comes_last_and_averages_cases():
    assert summarise(SCORES)[-1]["label"] == MEAN
    assert row(MEAN, "dice")["mean"] == pytest.approx((0.7 + 0.35 + 0.8) / 3)


def test_a_metric_that_no_case_defines_is_left_blank():
    assert row("head", "assd_mm")["mean"] == ""
    assert row("head", "assd_mm")["cases"] == 0


def test_files_hold_a_row_per_case_and_label_and_blanks_for_what_is_undefined(tmp_path):
    write_scores(tmp_path / "out", SCORES)
    with (tmp_path / "out/cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["case"], r["label"]) for r in rows[:3]] == [("a", "head"), ("a", "tail"), ("a", "mean")]
    assert rows[0]["dice"] == "0.9"
    assert (rows[-2]["dice"], rows[-2]["empty"]) == ("", "both")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cases.csv", "summary.csv"]
