"""What the pages name is there: links, headings, modules, files of the bundle."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer
from digar.cli.app import app
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
    """Blocks that check out an earlier commit speak of what was there."""
    text = re.sub(r"^```\ngit checkout .*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for module in set(re.findall(r"python -m ((?:digar|benchmarks)[.\w]*)", text)):
        assert importlib.util.find_spec(module), module
    # a path of the bundle, not one within another folder
    for file in set(re.findall(r"(?<![\w/.-])((?:configs|tests|scripts|benchmarks)/[\w/]+\.\w+)", text)):
        assert (ROOT / file).is_file(), file


def test_the_reference_of_the_command_is_what_the_command_says_of_itself() -> None:
    """After a change: ``typer digar.cli.app utils docs --name digar --output docs/reference/cli.md``."""
    command = typer.main.get_command(app)
    written = get_docs_for_click(obj=command, ctx=typer.Context(command), name="digar")
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == f"{written.strip()}\n"
