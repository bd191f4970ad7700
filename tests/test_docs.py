"""What the pages name is there: links, headings, modules, files of the bundle."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    """How GitHub writes a heading in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def prose(page: Path) -> str:
    """A page without its code blocks, whose comments look like headings."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            headings = [anchor(h) for h in re.findall(r"^#+ (.*)$", prose(target), flags=re.MULTILINE)]
            assert heading in headings, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_and_files_that_are_there(page) -> None:
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m ((?:digar|benchmarks)[.\w]*)", text)):
        assert importlib.util.find_spec(module), module
    # a path of the bundle, not one within another folder
    for file in set(re.findall(r"(?<![\w/.-])((?:configs|tests|scripts|benchmarks)/[\w/]+\.\w+)", text)):
        assert (ROOT / file).is_file(), file
