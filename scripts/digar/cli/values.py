"""Values that people give on the command line, checked before anything is built from them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Wanted(NamedTuple):
    """What an id takes: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _whole(least: int) -> Wanted:
    return Wanted(f"a whole number from {least} on", lambda v: _is_number(v) and v == int(v) and v >= least)


def _share(zero: bool, one: bool) -> Wanted:
    ends = f"{'from' if zero else 'above'} 0 {'to' if one else 'and below'} 1"
    return Wanted(
        f"a number {ends}", lambda v: _is_number(v) and (v >= 0 if zero else v > 0) and (v <= 1 if one else v < 1)
    )


def _three(item: Wanted) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(item.fits(n) for n in v)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    )


POSITIVE = Wanted("a number above 0", lambda v: _is_number(v) and v > 0)
VOXELS = Wanted("three whole numbers of voxels from 1 on", _three(_whole(1)))
WANTED = {
    **dict.fromkeys(("max_epochs", "batch_size", "val_interval", "samples_per_case", "keep_states"), _whole(1)),
    **dict.fromkeys(("num_workers", "fold", "worst_pictures", "max_skipped_steps"), _whole(0)),
    **dict.fromkeys(("learning_rate", "retraining_rate", "save_minutes", "surface_tolerance_mm"), POSITIVE),
    **dict.fromkeys(("validation_share", "overlap"), _share(zero=True, one=False)),
    "label_ratio": _share(zero=False, one=True),
    "nonfinite_share": _share(zero=True, one=True),
    "spacing": Wanted("three numbers of mm above 0", _three(POSITIVE)),
    **dict.fromkeys(("roi_size", "sample_size"), VOXELS),
}


def check_values(ids: Mapping[str, Any]) -> None:
    """Refuse values that an id cannot take; expressions of configs (``$``, ``@``, ``%``) are left to them.

    Raises:
        ValueError: names the option, what it got and what it takes.
    """
    for name, value in ids.items():
        wanted = WANTED.get(name)
        expression = isinstance(value, str) and value.startswith(("$", "@", "%"))
        if wanted is not None and value is not None and not expression and not wanted.fits(value):
            raise ValueError(f"--{name} {value}: it takes {wanted.words}")
