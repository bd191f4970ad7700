"""Paired comparisons, on numbers whose answer is known."""

import numpy as np
import pytest

from benchmarks.experiments.statistics import compare, differences, holm


def scores(values: dict[tuple[int, int], list[float]]) -> dict[tuple[int, int], dict[str, float]]:
    return {run: {f"p{i}": value for i, value in enumerate(row)} for run, row in values.items()}


def test_a_patients_difference_is_averaged_over_draws_and_seeds() -> None:
    arm = scores({(0, 0): [0.5, 0.6], (1, 0): [0.7, 0.6]})
    other = scores({(0, 0): [0.4, 0.6], (1, 0): [0.5, 0.4]})
    assert differences(arm, other) == pytest.approx({"p0": 0.15, "p1": 0.1})


def test_runs_that_only_one_arm_has_are_left_out() -> None:
    arm = scores({(0, 0): [0.5], (1, 0): [0.9]})
    assert differences(arm, scores({(0, 0): [0.4]})) == pytest.approx({"p0": 0.1})
    assert compare(arm, scores({(2, 0): [0.4]})) is None


def test_in_folds_every_patient_counts_once() -> None:
    arm = {(0, 0): {"a": 0.8}, (1, 0): {"b": 0.6}}
    other = {(0, 0): {"a": 0.7}, (1, 0): {"b": 0.7}}
    assert differences(arm, other) == pytest.approx({"a": 0.1, "b": -0.1})


def test_the_interval_is_that_of_the_mean_over_resampled_patients() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.03, 0.05, 40)
    difference = compare(scores({(0, 0): list(0.5 + values)}), scores({(0, 0): [0.5] * 40}))
    error = values.std() / np.sqrt(40)
    assert difference.mean == pytest.approx(values.mean())
    assert difference.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert difference.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert (difference.patients, difference.runs) == (40, 1)


def test_wilcoxons_p_is_exact_for_few_patients() -> None:
    difference = compare(scores({(0, 0): [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}), scores({(0, 0): [0.0] * 6}))
    assert difference.p == pytest.approx(2 / 2**6)  # all six of one sign


def test_equal_arms_differ_by_nothing() -> None:
    same = scores({(0, 0): [0.5, 0.6]})
    difference = compare(same, same)
    assert (difference.mean, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_holm_multiplies_the_smallest_p_most_and_keeps_their_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_error_where_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    wrong = sum(min(holm(list(generator.uniform(size=5)))) < 0.05 for _ in range(2000))
    assert 60 <= wrong <= 140  # 5 % of 2000
