"""Imports go down the rooms, never up, so that a room can be read and changed without those above it."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("cli", "inference", "evaluation", "training", "networks", "data", "volumes")
PACKAGE = ROOT / "scripts/digar"


def imported_rooms(file: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[1] for name in names if name.startswith("digar.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_from_those_below(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    climbing = {str(file): imported_rooms(file) & above for file in (PACKAGE / room).rglob("*.py")}
    assert {file: rooms for file, rooms in climbing.items() if rooms} == {}


def test_every_room_is_known() -> None:
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()} == set(ROOMS)
