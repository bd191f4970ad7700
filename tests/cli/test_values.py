"""Values on the command line: what cannot be is refused with the option's name and what it takes."""

from typing import Any

import pytest
from digar.cli.values import check_values


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_epochs", "two", "--max_epochs two: it takes a whole number from 1 on"),
        ("max_epochs", 0, "--max_epochs 0: it takes a whole number from 1 on"),
        ("max_epochs", 2.5, "a whole number from 1 on"),
        ("max_epochs", True, "a whole number from 1 on"),
        ("spacing", [0, 1, 1], "three numbers of mm above 0"),
        ("spacing", [1, 1], "three numbers of mm above 0"),
        ("spacing", "1,1,1", "three numbers of mm above 0"),
        ("spacing", [1, 1, float("nan")], "three numbers of mm above 0"),
        ("roi_size", [16, 16, 1.5], "three whole numbers of voxels"),
        ("validation_share", 5, "a number from 0 and below 1"),
        ("label_ratio", 0, "a number above 0 to 1"),
        ("learning_rate", -1, "a number above 0"),
        ("num_workers", -1, "a whole number from 0 on"),
        ("overlap", 1, "a number from 0 and below 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name} ") as caught:
        check_values({name: value})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_epochs", 1), ("spacing", (1, 1.5, 10)), ("spacing", "$@task_def.spacing"), ("label_ratio", 1),
     ("other", "x"), ("fold", 0), ("validation_share", 0), ("max_epochs", None)],
)  # fmt: skip
def test_what_can_be_is_taken(name: str, value: Any) -> None:
    check_values({name: value})
