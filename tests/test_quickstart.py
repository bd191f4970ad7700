"""The tutorial runs, and what is stored of it can be read on the web."""

import re

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

FILE = ROOT / "docs/quickstart.ipynb"
MACHINE = re.compile(r"/(home|root|work|tmp|mnt|usr|opt|Users|scratch|media)/|[A-Z]:\\\\")


def texts(cell: nbformat.NotebookNode) -> str:
    """All that a cell's outputs say."""
    outputs = cell.get("outputs", [])
    return "".join(
        output.get("text", "") + "".join(output.get("traceback", [])) + output.get("data", {}).get("text/plain", "")
        for output in outputs
    )


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_stored_notebook_shows_its_pictures_and_stays_small(stored: nbformat.NotebookNode) -> None:
    pictures = [
        key
        for cell in stored.cells
        for output in cell.get("outputs", [])
        for key in output.get("data", {})
        if key.startswith("image/")
    ]
    assert len(pictures) == 5
    assert FILE.stat().st_size < 600_000


def test_the_stored_notebook_ran_from_top_to_bottom_and_names_no_machine(stored: nbformat.NotebookNode) -> None:
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [found for cell in stored.cells if (found := MACHINE.findall(cell.source + texts(cell)))] == []
    assert not any("execution" in cell.metadata for cell in cells)  # times


def test_the_links_of_the_notebook_lead_somewhere(stored: nbformat.NotebookNode) -> None:
    links = [link for cell in stored.cells for link in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source)]
    assert links
    assert [link for link in links if not (FILE.parent / link).is_file()] == []


def test_the_notebook_begins_with_the_story_not_with_plumbing(stored: nbformat.NotebookNode) -> None:
    assert stored.cells[0].cell_type == "markdown"
    assert len(stored.cells[0].source) > 500
    assert len(stored.cells[1].source.splitlines()) < 10


@pytest.mark.slow
def test_the_notebook_runs_and_its_masks_are_right(stored: nbformat.NotebookNode) -> None:
    notebook = nbformat.from_dict({**stored, "cells": [dict(cell) for cell in stored.cells]})
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(FILE.parent)}}).execute()
    said = "".join(texts(cell) for cell in notebook.cells)
    mean = re.search(r"mean Dice (\d\.\d{3})", said)
    assert mean, said
    assert float(mean[1]) > 0.6
