"""The tables of a page, from generated results."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from benchmarks.experiments.pages import draw_figures, tables
from benchmarks.experiments.protocol import Comparison, read_protocol
from benchmarks.experiments.scores import macro_auc, patient_scores
from tests.experiments.test_runs import PLAN


@pytest.fixture
def protocol(tmp_path):
    plan = {**PLAN, "twins": [], "runs": [{"labels": 2, "draws": 2, "arms": ["scratch", "next"]}]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return read_protocol("plan", tmp_path)


def result(arm: str, draw: int, dice: list[float]) -> dict[str, Any]:
    """Two phases of each patient, a bit apart, two labels each."""
    rows = [
        {"patient": f"p{p}", "case": f"p{p}_{phase}", "label": label, "dice": value + shift}
        for p, value in enumerate(dice) for phase, shift in (("ed", 0.01), ("es", -0.01)) for label in ("a", "b")
    ]  # fmt: skip
    described = {"kind": "run", "arm": arm, "labels": 2, "draw": draw, "seed": 0, "commit": "0123456789abcdef"}
    without = [{**row, "dice": row["dice"] / 2} for row in rows]
    return {
        **described,
        "rate": 0.01,
        "seconds": 3,
        "peak_memory_mib": 100,
        "steps": 2,
        "parameters": 10**6,
        "scores": rows,
        "scores_without_blocks": without,
    }


def results() -> dict[str, dict[str, Any]]:
    dice = {("scratch", 0): [0.5, 0.6], ("scratch", 1): [0.7, 0.6], ("next", 0): [0.6, 0.7]}
    return {f"{arm}{draw}": result(arm, draw, values) for (arm, draw), values in dice.items()}


def test_a_main_comparison_uses_the_runs_that_both_arms_have_and_says_how_many(protocol) -> None:
    (row,) = tables(protocol, results())["main"]["rows"]
    assert row == ["next - scratch", "2", "+0.100", "+0.100 to +0.100", "0.5", "0.5", 2, "1 of 2"]


def test_a_comparison_that_was_not_run_is_said_to_be(protocol) -> None:
    (row,) = tables(protocol, {})["main"]["rows"]
    assert row == ["next - scratch", "2", "not run", None, None, None, None, "0 of 2"]


def test_a_margin_asks_whether_an_arm_is_not_worse_by_more(protocol) -> None:
    asked = replace(protocol, main=[replace(pair, margin=0.05) for pair in protocol.main])
    table = tables(asked, results())["main"]
    assert (table["columns"][-1], table["rows"][0][-1]) == ("not worse by more than", "yes, 0.05")
    asked = replace(protocol, main=[Comparison("scratch", "next", 2, margin=0.05)])
    assert tables(asked, results())["main"]["rows"][0][-1] == "not shown, 0.05"


def test_scores_are_means_over_patients_with_what_runs_differ_by(protocol) -> None:
    rows = tables(protocol, results())["scores"]["rows"]
    assert rows[0][:5] == ["2", "scratch", "0.600", "0.071", "0.600"]
    assert rows[1] == ["2", "next", "0.650", None, "0.600", "0.650 0.650", "1 of 2", "0.01", 2, "1.00", "1.50", 100]


def test_the_blocks_replaced_by_the_identity_are_compared_with_the_whole_network(protocol) -> None:
    rows = tables(protocol, results())["identity"]["rows"]
    assert rows[0][:5] == ["2", "scratch", "0.600", "0.300", "-0.300"]


def test_the_plan_tells_how_far_it_is(protocol) -> None:
    rows = dict(tables(protocol, results())["plan"]["rows"])
    assert rows["done"] == "0 of 1 pretrainings, 0 of 2 tunings, 3 of 4 runs"
    assert rows["code"] == "`0123456789`"


def test_figures_are_drawn_from_what_is_there(protocol, tmp_path) -> None:
    draw_figures(protocol, results(), tmp_path)
    assert [file.name for file in tmp_path.glob("*.png")] == ["plan_scores.png"]


def test_a_patients_class_is_found_from_all_its_volumes() -> None:
    rows = [
        {"case": "a_1", "patient": "a", "class": "yes", "no": 0.6, "yes": 0.4},
        {"case": "a_2", "patient": "a", "class": "yes", "no": 0.1, "yes": 0.9},
        {"case": "b_1", "patient": "b", "class": "no", "no": 0.2, "yes": 0.8},
    ]
    assert patient_scores(rows) == {"a": 1.0, "b": 0.0}
    assert macro_auc(rows) == 0.0  # the patient of class no has more yes than the other
