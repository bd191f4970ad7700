"""Starting the label server; the server itself is driven in tests/label."""

import importlib.util
from pathlib import Path

import pytest
from digar.cli.serve import serve


def test_a_mistyped_folder_of_studies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*studes"):
        serve(tmp_path / "studes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("monailabel") is not None, reason="MONAI Label is installed here")
def test_without_monai_label_it_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"docs/monailabel\.md"):
        serve(tmp_path)
