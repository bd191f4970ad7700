"""How data lie on the disk: one module per layout, and the list in which they are tried.

To add one: a module with a class of the form :class:`Layout`, and its place in ``LAYOUTS``.
"""

from pathlib import Path

from digar.data.layouts.auto3dseg import Auto3DSeg
from digar.data.layouts.bids import Bids
from digar.data.layouts.layout import Case, DataSet, Layout, refuse_missing
from digar.data.layouts.msd import MsdTask
from digar.data.layouts.nnunet import NnUNetRaw
from digar.data.layouts.pairs import FolderPair
from digar.data.layouts.scans import Scans
from digar.data.layouts.table import Table

__all__ = ["LAYOUTS", "Case", "DataSet", "Layout", "read_data"]

LAYOUTS: tuple[Layout, ...] = (MsdTask(), NnUNetRaw(), Auto3DSeg(), Table(), FolderPair(), Bids(), Scans())


def read_data(place: str | Path, labelled: bool = False) -> DataSet:
    """The cases of a folder or a list, in the first layout that fits.

    Args:
        place: a folder or a file.
        labelled: only a layout with labels will do.

    Raises:
        FileNotFoundError: there is no such place, or a file that is listed is missing.
        ValueError: it has none of the layouts; names the nearest one and what is missing.
    """
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a folder or a list of your data")
    candidates = [layout for layout in LAYOUTS if layout.labelled or not labelled]
    wanting = [(layout, layout.missing(path)) for layout in candidates]
    for layout, missing in wanting:
        if not missing:
            data = layout.read(path)
            refuse_missing(data, labels=labelled)
            return data
    nearest, missing = min(wanting, key=lambda item: len(item[1]))
    known = ", ".join(layout.name for layout in candidates)
    raise ValueError(
        f"{path} has none of the known layouts ({known}); the nearest is {nearest.name}, but {'; '.join(missing)}"
    )
