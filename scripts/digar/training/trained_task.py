"""The task that a training writes beside its weights: what the network was trained for, and with."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.handlers import CheckpointLoader
from monai.transforms import RandAxisFlipd, RandFlipd

from digar.data.facts import CaseFacts, label_warnings, span
from digar.data.layouts import read_data
from digar.data.task import Task, TrainedWith, read_task, task_file, unnamed

logger = logging.getLogger(__name__)


def trained_task(
    task: Task,
    facts: Sequence[CaseFacts] = (),
    augmentations: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
    images: int = 0,
    dataset_dir: str | Path | None = None,
) -> Task:
    """A training's task with ``trained_with`` filled in; what cannot be learned from its labels is logged.

    Args:
        task: of the training.
        facts: of the images that it sees.
        augmentations: transforms of its samples.
        handlers: of the trainer. Where one loads weights with a task, what those have seen counts too.
        images: how many there are, where there are no facts.
        dataset_dir: the data, if they are there; labels without a name take theirs.
    """
    for text in label_warnings(facts, task.labels) if facts and task.labels else []:
        logger.warning(text)
    flips = flipped_axes(augmentations)
    seen = TrainedWith(len(facts), flips, **span(facts)) if facts else TrainedWith(images, flips)
    for handler in handlers:
        file = task_file(handler.load_path) if isinstance(handler, CheckpointLoader) else None
        if file and file.is_file() and (before := read_task(file).trained_with):
            seen = joined(before, seen)
    labels = dict(task.labels)
    if dataset_dir and Path(dataset_dir).exists() and any(name == unnamed(value) for value, name in labels.items()):
        names = read_data(dataset_dir).labels
        labels = {value: names.get(value, name) if name == unnamed(value) else name for value, name in labels.items()}
    return replace(task, labels=labels, trained_with=seen)


def flipped_axes(augmentations: Sequence[Any]) -> list[int]:
    """The axes along which samples are mirrored."""
    axes: set[int] = set()
    for transform in augmentations:
        if isinstance(transform, RandAxisFlipd) and transform.prob:
            axes |= {0, 1, 2}
        if isinstance(transform, RandFlipd) and transform.prob:
            given = transform.flipper.spatial_axis
            axes |= {0, 1, 2} if given is None else set(np.atleast_1d(given).tolist())
    return sorted(axis % 3 for axis in axes)


def joined(before: TrainedWith, after: TrainedWith) -> TrainedWith:
    """What a network has seen that went on from another's weights; mirrored images only if both have seen them."""

    def both(name: str) -> tuple[np.ndarray, np.ndarray]:
        return np.array(getattr(before, name)), np.array(getattr(after, name))

    def widened(name: str) -> list:
        old, new = both(name)
        if old.shape != new.shape or not new.size:
            return new.tolist()
        low, high = np.minimum(old, new), np.maximum(old, new)
        axis = -1 if name == "intensity_percentiles" else 0
        return np.stack([low.take(0, axis), high.take(1, axis)], axis).tolist()

    return TrainedWith(
        images=before.images + after.images,
        flips=sorted(set(before.flips) & set(after.flips)),
        **{name: widened(name) for name in ("spacing_mm", "extent_mm", "intensity_percentiles")},
    )
