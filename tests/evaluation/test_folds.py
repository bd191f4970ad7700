"""The tables of several folds become one, which is that of all their cases."""

import math

import pytest
from digar.evaluation.folds import merge_folds, read_scores
from digar.evaluation.metrics import METRICS
from digar.evaluation.segmentation import Score
from digar.evaluation.tables import write_scores

SCORES = [
    Score("a", "one", dict(zip(METRICS, (0.9, 0.8, 1.0, 0.5, 0.95, 10.0, 11.0, -1.0), strict=True))),
    Score("a", "two", empty="both"),
    Score("b", "one", {"dice": 0.0, "volume_ml": 0.0, "true_volume_ml": 2.0}, empty="prediction"),
    Score("b", "two", dict(zip(METRICS, (0.7, 0.5, 2.0, 1.0, 0.75, 3.0, 2.0, 1.0), strict=True))),
    Score("c", "one", dict(zip(METRICS, (0.5, 0.3, 4.0, 2.0, 0.50, 5.0, 4.0, 1.0), strict=True))),
    Score("c", "two", dict(zip(METRICS, (0.6, 0.4, 3.0, 1.5, 0.60, 4.0, 4.0, 0.0), strict=True))),
]


def test_the_merged_tables_are_those_of_all_cases(tmp_path):
    write_scores(tmp_path / "all", SCORES)
    write_scores(tmp_path / "0", SCORES[:2])
    write_scores(tmp_path / "1", SCORES[2:])
    lines = merge_folds([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert lines[0] == "3 cases of 2 evaluations"
    for name in ("cases.csv", "summary.csv"):
        assert (tmp_path / "merged" / name).read_text() == (tmp_path / "all" / name).read_text()
    assert math.isnan(read_scores(tmp_path / "merged")[1]["dice"])


def test_a_case_of_two_folds_is_refused(tmp_path):
    for fold in ("0", "1"):
        write_scores(tmp_path / fold, SCORES[:2])
    with pytest.raises(ValueError, match=r"a is in .*/0 and in .*/1"):
        merge_folds([tmp_path / "0", tmp_path / "1"], tmp_path)


def test_what_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cases.csv is missing: give the output_dir"):
        read_scores(tmp_path)
    (tmp_path / "cases.csv").write_text("case,class\n")
    with pytest.raises(ValueError, match="cases.csv has the columns case, class; it lacks label"):
        read_scores(tmp_path)
