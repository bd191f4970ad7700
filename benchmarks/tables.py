"""The tables on the pages of results, written from the numbers beside them.

    python -m benchmarks.tables            # fills every page of docs/experiments

``docs/experiments/data/NAME.json`` holds the tables of the page ``docs/experiments/NAME.md``: name to ``columns`` and
``rows``. Where an experiment was planned (``benchmarks/experiments``), its tables are computed from the results of its
runs, ``docs/experiments/data/NAME/*.json``, and its figures drawn. In the page a table stands between
``<!-- table NAME -->`` and ``<!-- end -->``; what is around it is prose. A test holds each page against its numbers.
``planned.md`` lists all planned experiments; with an experiment's first results its own page is begun.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.experiments.pages import draw_figures, overview
from benchmarks.experiments.pages import tables as computed_tables
from benchmarks.experiments.protocol import names, read_protocol
from benchmarks.experiments.scores import RESULTS, read_results

FOLDER = Path(__file__).parents[1] / "docs/experiments"
PLACE = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def markdown(table: Mapping[str, Any]) -> str:
    """A table as Markdown; None is an empty cell."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows)


def filled(page: str, tables: Mapping[str, Any]) -> str:
    """The text of a page with its tables written anew.

    Raises:
        ValueError: the page and the numbers do not name the same tables.
    """
    named = PLACE.findall(page)
    if sorted(named) != sorted(tables):
        raise ValueError(f"the page has the tables {sorted(named)}, the numbers {sorted(tables)}")
    return PLACE.sub(lambda place: f"<!-- table {place[1]} -->\n{markdown(tables[place[1]])}\n<!-- end -->", page)


def planned(page: Path) -> bool:
    """Whether the page is that of a planned experiment."""
    return page.stem in names()


def pages() -> list[Path]:
    """The pages that have numbers beside them."""
    written = {file.stem for file in (FOLDER / "data").glob("*.json")}
    written |= {name for name in [*names(), "planned"] if (FOLDER / f"{name}.md").is_file()}
    return [FOLDER / f"{name}.md" for name in sorted(written)]


def numbers(page: Path) -> dict[str, Any]:
    """The tables of a page."""
    if page.stem == "planned":
        found = [(read_protocol(name), read_results(RESULTS / name)) for name in names()]
        return {"experiments": overview(found)}
    if planned(page):
        return computed_tables(read_protocol(page.stem), read_results(RESULTS / page.stem))
    return json.loads((FOLDER / "data" / f"{page.stem}.json").read_text(encoding="utf-8"))


def begun(title: str, tables: Mapping[str, Any]) -> str:
    """A page with a place for every table, for what is to be said of them."""
    places = (f"<!-- table {name} -->\n<!-- end -->\n" for name in tables)
    return "\n".join([f"# {title}\n", *places])


def main() -> None:
    for name in names():  # the first results of an experiment
        page = FOLDER / f"{name}.md"
        if (RESULTS / name).is_dir() and not page.is_file():
            page.write_text(begun(read_protocol(name).title, numbers(page)), encoding="utf-8")
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8"), numbers(page)), encoding="utf-8")
        if planned(page):
            draw_figures(read_protocol(page.stem), read_results(RESULTS / page.stem), FOLDER.parent / "pictures")
        print(page.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    main()
