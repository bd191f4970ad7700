"""One table from the evaluations of several folds."""

import math
from collections.abc import Sequence
from pathlib import Path

from digar.evaluation.metrics import METRICS
from digar.evaluation.segmentation import Score
from digar.evaluation.tables import MEAN, case_columns, summary_lines, write_scores
from digar.volumes.files import read_table


def read_scores(folder: str | Path) -> list[Score]:
    """The scores of every case and label that an evaluation wrote to ``folder/cases.csv``; an empty field is NaN.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no table of segmentation scores.
    """
    file = Path(folder) / "cases.csv"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: give the output_dir of an evaluation")
    rows = [row for _, row in read_table(file, case_columns()) if row["label"] != MEAN]
    values = [{name: float(row[name] or math.nan) for name in METRICS} for row in rows]
    return [Score(row["case"], row["label"], own, row["empty"]) for row, own in zip(rows, values, strict=True)]


def merge_folds(folders: Sequence[str | Path], output: str | Path) -> list[str]:
    """Write ``cases.csv`` and ``summary.csv`` over the cases of all folders; return the summary for the screen.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_scores`.
        ValueError: a case is in two folders, so that they are no folds of one cross-validation.
    """
    found: dict[str, str | Path] = {}
    scores = []
    for folder in folders:
        own = read_scores(folder)
        for case in dict.fromkeys(score.case for score in own):
            if case in found:
                raise ValueError(f"{case} is in {found[case]} and in {folder}: the folds must not share cases")
            found[case] = folder
        scores += own
    return [f"{len(found)} cases of {len(folders)} evaluations", *summary_lines(write_scores(Path(output), scores))]
