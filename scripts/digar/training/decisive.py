"""What decides the next step of a training and its best weights, compared when it is resumed."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from monai.engines import Evaluator, Trainer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from digar.data.layouts import Case
from digar.data.sampler import resumable_sampler
from digar.networks.description import describe, describe_modules
from digar.training.gradients import SafeSteps
from digar.training.run_seed import RunSeed

SAMPLED_BYTES = 4096  # at the beginning, in the middle and at the end of a file
CASES = ("training cases", "held-out cases")
LISTED = 4  # differences, and cases, that a message names


def decisive(
    trainer: Trainer, evaluator: Evaluator, network: nn.Module, scheduler: LRScheduler, handlers: Sequence[Any]
) -> dict[str, Any]:
    """Plain values that are alike for two runs which make the same step from the same state.

    Everything is taken as it is in memory (see :mod:`digar.networks.description`), before the first step. The number of
    processes, the device, what is cached and where files lie decide nothing.

    Args:
        trainer, evaluator: of the run.
        network: as it was before processes were wrapped around it.
        scheduler: of the rate.
        handlers: of the trainer.
    """
    loader = trainer.data_loader
    sampler = resumable_sampler(loader)
    return {
        "training cases": case_identities(_cases(loader.dataset)),
        "held-out cases": case_identities(_cases(evaluator.data_loader.dataset)),
        "samples": describe(loader.dataset),
        "order": {"seed": sampler.seed, "shuffle": sampler.shuffle, "drop_last": sampler.drop_last},
        "network": describe_modules(network),
        "loss": describe(trainer.loss_function),
        "inferer": describe(trainer.inferer),
        "batch": describe(trainer.prepare_batch),
        "optimizer": [
            {name: describe(value) for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
            for group in trainer.optimizer.param_groups
        ],
        "rates": [float(rate) for rate in scheduler.base_lrs],
        "scheduler": {
            name: value
            for name, value in vars(scheduler).items()
            if isinstance(value, bool | int | float | str) and not name.startswith("_") and name != "last_epoch"
        },
        "steps": [describe(handler) for handler in handlers if isinstance(handler, SafeSteps | RunSeed)],
    }


def _cases(dataset: Any) -> list[Case]:
    """The cases of a dataset; those of a pretraining are sorted by kind."""
    if hasattr(dataset, "cases"):
        return [case for own in dataset.cases.values() for case in own]
    return list(getattr(dataset, "data", dataset))


def case_identities(cases: Sequence[Case]) -> list[Any]:
    """Each case with its files by name, below the folder that all share, size and samples of their content.

    So a case that was replaced or corrected is another, and one that was moved with all others is not.
    """
    paths = sorted({path for case in cases for path in _paths(case)})
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    with ThreadPool() as pool:
        known = dict(zip(paths, pool.map(lambda path: _file_identity(path, root), paths), strict=True))

    def identity(value: Any) -> Any:
        if isinstance(value, str | Path):
            return known.get(str(value), str(value))
        return [identity(item) for item in value] if isinstance(value, list | tuple) else describe(value)

    return [{str(name): identity(value) for name, value in case.items()} for case in cases]


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path):
        if os.path.exists(value):
            yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)


def _file_identity(path: str, root: str) -> str:
    files = sorted(file for file in Path(path).rglob("*") if file.is_file()) if os.path.isdir(path) else [Path(path)]
    content = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for place in (0, size // 2, max(size - SAMPLED_BYTES, 0)):
                stream.seek(place)
                content.update(stream.read(SAMPLED_BYTES))
        content.update(str(size).encode())
    return f"{os.path.relpath(os.path.abspath(path), root)} {content.hexdigest()[:16]}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, in words; rates are left out."""
    found = []
    for name in CASES:
        gone = [case for case in then[name] if case not in now[name]]
        come = [case for case in now[name] if case not in then[name]]
        if then[name] != now[name]:
            words = [f"{len(then[name])} then, {len(now[name])} now"]
            words += [f"{what} {_names(cases)}" for what, cases in (("without", gone), ("with", come)) if cases]
            found.append(f"{name} ({'; '.join(words)})")
    rest = [{k: v for k, v in side.items() if k not in (*CASES, "rates")} for side in (then, now)]
    before, after = (dict(_leaves(side)) for side in rest)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    found += [f"{name} ({_short(before.get(name))} then, {_short(after.get(name))} now)" for name in changed]
    return found[:LISTED] + ([f"{len(found) - LISTED} more"] if len(found) > LISTED else [])


def _names(cases: Sequence[Mapping[str, Any]]) -> str:
    images = [case.get("image", "?") for case in cases]
    names = [str(image[0] if isinstance(image, list) else image).rpartition(" ")[0] or "?" for image in images]
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
