"""The tables on the pages of results are those of the numbers beside them."""

from pathlib import Path

import pytest

from benchmarks.tables import begun, filled, numbers, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page_shows_its_numbers(page: Path) -> None:
    """After a change of the numbers: ``python -m benchmarks.tables``."""
    text = page.read_text(encoding="utf-8")
    assert filled(text, numbers(page)) == text


def test_a_table_is_written_between_its_marks_and_prose_stays() -> None:
    page = "before\n<!-- table a -->\nold\n<!-- end -->\nafter\n"
    tables = {"a": {"columns": ["arm", "Dice"], "rows": [["none", 0.5], ["grid", None]]}}
    assert filled(page, tables) == (
        "before\n<!-- table a -->\n| arm | Dice |\n| --- | --- |\n| none | 0.5 |\n| grid |  |\n<!-- end -->\nafter\n"
    )


def test_a_table_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has the tables"):
        filled("no place", {"a": {"columns": [], "rows": []}})


def test_a_page_is_begun_with_a_place_for_every_table() -> None:
    tables = {"a": {"columns": ["arm"], "rows": [["none"]]}, "b": {"columns": ["arm"], "rows": []}}
    page = filled(begun("A question", tables), tables)
    assert page.startswith("# A question\n\n<!-- table a -->\n| arm |\n| --- |\n| none |\n<!-- end -->\n")
    assert page.count("<!-- end -->") == 2
