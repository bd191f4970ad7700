"""A task for your own data: what the images are like, and what follows for the network and its training.

Follows nnU-Net's rules (Isensee et al., Nature Methods 2021) for spacing and CT intensities.
"""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from digar.data.datalists import READERS, check_cases, scans
from digar.data.facts import CaseFacts, case_facts, describe, label_warnings
from digar.data.layouts import Case, DataSet, read_data
from digar.data.splits import split_cases
from digar.data.task import PERCENTILES, Network, Task, Training, parse_task, to_plain, unnamed, write_task
from digar.volumes.checks import CheckedLoadImaged
from digar.volumes.header import VolumeError

MOST_READ = 500  # scans without labels; of more, so many are drawn
THICK = 3.0  # an axis is thick where its spacing is this many times the finest
FINEST_PATCH = 8  # voxels, where the spacing is finest; as in train.json
MOST_FULL_TOKENS = 1024  # of a crop; with more, full attention takes most of the step (docs/results.md)
DILATION = Network().dilation  # the patch grid must divide by it
BATCH_SIZE = 2  # of train.json
PRETRAINING_BATCH_SIZE = 4  # of pretrain.yaml
TRAINING_STEPS = 3000  # at least, where MOST_EPOCHS allow (docs/results.md)
VALIDATIONS = 20  # in a training, as in train.json and pretrain.yaml
MOST_EPOCHS = 1000  # of very few cases: every epoch ends with a state on the disk
VOXEL_BYTES, TOKEN_BYTES = 1_000, 160_000  # of a training step, measured on a CPU in bf16 (peak resident memory)
GIB = 2**30


def target_spacing(spacings: np.ndarray) -> tuple[list[float], str]:
    """Voxel size to work in: the median per axis; of a thick axis the 10th percentile, so that less is lost.

    Args:
        spacings: of all cases, ``(cases, 3)`` mm.
    """
    spacing = np.median(spacings, axis=0)
    thick = spacing > THICK * spacing.min()
    spacing[thick] = np.percentile(spacings[:, thick], 10, axis=0)
    reason = "median of the cases" + ("; of the thick axis the 10th percentile" if thick.any() else "")
    return [float(f"{value:.4g}") for value in spacing], reason


def choose_patch(spacing: Sequence[float]) -> tuple[list[int], str]:
    """Patch in voxels, powers of two, about as long in mm on every axis; coarser in plane where slices are thick."""
    doublings = [round(math.log2(value / min(spacing))) for value in spacing]
    patch = [max(FINEST_PATCH >> n, 1) for n in doublings]
    lengths = " x ".join(f"{p * s:.3g}" for p, s in zip(patch, spacing, strict=True))
    return patch, f"about as long on every axis: {lengths} mm"


def step_memory(crop: Sequence[int], patch: Sequence[int]) -> float:
    """Estimated memory of a training step in GiB: two crops, the default network."""
    voxels = BATCH_SIZE * math.prod(crop)
    return voxels * (VOXEL_BYTES + TOKEN_BYTES / math.prod(patch)) / GIB


def choose_crop(
    sizes: np.ndarray, spacing: Sequence[float], patch: Sequence[int], memory: float
) -> tuple[list[int], str]:
    """Crop in voxels: the largest image whole, or as near to a cube in mm as the memory lets it be.

    Args:
        sizes: of all images at ``spacing``, ``(cases, 3)`` voxels.
        spacing: mm.
        patch: in voxels; the crop is a multiple of ``patch * dilation``.
        memory: that a training step may take, GiB.

    Raises:
        ValueError: not even the smallest crop fits the memory.
    """
    unit = np.array(patch) * DILATION
    crop = (np.ceil(sizes.max(axis=0) / unit) * unit).astype(int)
    whole = crop.copy()
    while step_memory(crop.tolist(), patch) > memory:
        extent = np.where(crop > unit, crop * np.array(spacing), 0)
        if not extent.any():
            raise ValueError(f"the smallest crop {crop.tolist()} needs more than {memory} GiB: pass a larger --memory")
        crop[extent.argmax()] -= unit[extent.argmax()]
    share = np.median(np.minimum(crop / sizes, 1).prod(axis=1))
    seen = "the largest image fits" if (crop == whole).all() else f"{share:.0%} of a median image"
    return crop.tolist(), f"{seen}; a training step takes about {step_memory(crop.tolist(), patch):.1f} GiB"


def choose_epochs(num_cases: int, batch_size: int, validation_share: float) -> tuple[int, int]:
    """Epochs of a training, and its steps: few cases get as many steps as many do."""
    training = len(split_cases([{}] * num_cases, validation_share, seed=0, part="training"))
    steps = math.ceil(training / batch_size)
    epochs = VALIDATIONS * math.ceil(min(TRAINING_STEPS / steps, MOST_EPOCHS) / VALIDATIONS)  # ends with a validation
    return epochs, epochs * steps


def choose_intensity(facts: Sequence[CaseFacts], channels: Sequence[str]) -> tuple[str | tuple[float, float], str]:
    """The rule that scales intensities to 0..1.

    CT values mean the same in every scan: one window, the 0.5 to 99.5 percentile of all labelled voxels. Others mean
    nothing outside their scan: each image and channel by its own 1 and 99.9 percentile.
    """
    if channels and all(name.upper().startswith("CT") for name in channels):
        labelled = np.concatenate([case.labelled.ravel() for case in facts])
        low, high = np.percentile(labelled, [0.5, 99.5]) if labelled.size else (0.0, 0.0)
        if low < high:
            window = round(float(low), 2), round(float(high), 2)
            return window, "CT: window of the labelled voxels, 0.5 to 99.5 %"
        return PERCENTILES, "CT without labelled voxels: every image by its own percentiles, 1 to 99.9"
    return PERCENTILES, "not CT: every image and channel by its own percentiles, 1 to 99.9"


def derive_task(
    name: str,
    facts: Sequence[CaseFacts],
    num_cases: int,
    channels: Sequence[str],
    labels: dict[int, str],
    memory: float,
    cache: float,
    spacing: Sequence[float] | None = None,
) -> tuple[Task, dict[str, str], int]:
    """Everything that follows from the facts.

    Args:
        name: of the task.
        facts: of the images.
        num_cases: how many images there are; facts may be of some.
        channels: their names; empty where the data do not tell.
        labels: by value; empty for scans without labels.
        memory: that a training step may take, GiB.
        cache: that the cached scans may take, GiB.
        spacing: mm, where it is not to be derived.

    Returns:
        The task, why each of its keys is what it is, and the steps of its training (without labels: its pretraining).
    """
    chosen, spacing_reason = target_spacing(np.stack([case.spacing for case in facts]))
    if spacing is not None:
        chosen, spacing_reason = [float(v) for v in spacing] * (3 // len(spacing)), "as you asked"
    sizes = np.stack([case.shape * case.spacing / chosen for case in facts])
    patch, patch_reason = choose_patch(chosen)
    crop, crop_reason = choose_crop(sizes, chosen, patch, memory)
    intensity, intensity_reason = choose_intensity(facts, channels)
    num_channels = len(facts[0].percentiles)
    share = Training().validation_share if num_cases > 1 else 0.0
    epochs, steps = choose_epochs(num_cases, BATCH_SIZE, share)
    pretraining_epochs, pretraining_steps = choose_epochs(num_cases, PRETRAINING_BATCH_SIZE, share)
    tokens = math.prod(crop) // math.prod(patch)
    cached = float(sizes.mean(axis=0).prod()) * num_cases * (num_channels + 1) * 4 / GIB
    steps_told = f"{steps} steps of {BATCH_SIZE} crops, " if labels else ""
    task = Task(
        name=name,
        channels=channels or [f"channel {number}" for number in range(num_channels)],
        labels=labels,
        spacing=chosen,
        crop=crop,
        patch=patch,
        network=Network(attention="full+sequence" if tokens <= MOST_FULL_TOKENS else "local+grid"),
        intensity=intensity,
        training=Training(epochs, pretraining_epochs, share, math.floor(100 * min(1, cache / cached)) / 100),
    )
    reasons = {
        "channels": "co-registered contrasts are channels of one image",
        "labels": "values in the masks; 0 is the background" if labels else "none: this task is for pretraining",
        "spacing": f"mm to the right, the front, the top: {spacing_reason}",
        "crop": f"voxels: {crop_reason}",
        "patch": f"voxels: {patch_reason}",
        "network": f"{tokens} tokens a crop; full attention up to {MOST_FULL_TOKENS}",
        "intensity": intensity_reason,
        "training": f"{steps_told}{pretraining_steps} steps of {PRETRAINING_BATCH_SIZE} in pretraining; all scans take "
        f"{cached:.1f} GiB of memory",
    }
    if not share:
        reasons["training"] += "; one case: nothing is left to validate with"
    return parse_task(to_plain(task)), reasons, steps if labels else pretraining_steps


class Plan(NamedTuple):
    """A task, the steps of its training (without labels: its pretraining), and what was found and derived, as lines."""

    task: Task
    steps: int
    lines: list[str]


def plan(
    dataset_dir: str | Path,
    output: str | Path,
    memory: float = 4.0,
    cache: float = 8.0,
    spacing: Sequence[float] | None = None,
) -> Plan:
    """Read images and labels, or scans without labels, in any layout, and write a task for them.

    Args:
        dataset_dir: the data.
        output: the YAML file.
        memory: that a training step may take, GiB; decides the crop.
        cache: that the scans kept in memory may take, GiB.
        spacing: mm per axis or one for all, to work in; derived where None.

    Raises:
        FileExistsError: the output exists; somebody may have edited it.
        FileNotFoundError, ValueError: the data cannot be used; every reason is named.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists, perhaps edited: choose another output, or remove it first")
    if spacing is not None and (len(spacing) not in (1, 3) or not all(0 < value < math.inf for value in spacing)):
        raise ValueError(f"spacing {list(spacing)} must be one or three numbers above 0, in mm")
    data = read_data(dataset_dir)
    cases = data.labelled or scans(dataset_dir)
    facts, labels, notes = _read_labelled(data) if data.labelled else _read_scans(cases)
    found = len(facts[0].percentiles)
    if data.channels and len(data.channels) != found:
        raise ValueError(
            f"{dataset_dir} names {len(data.channels)} channels ({', '.join(data.channels)}), the images have {found}: "
            "correct one of them"
        )
    name = Path(dataset_dir).resolve().name
    task, reasons, steps = derive_task(name, facts, len(cases), data.channels, labels, memory, cache, spacing)
    told = [data.describe(), *describe(facts), *(f"WARNING: {note}" for note in notes)]
    top = ["Written by planning from the data; edit as you like. Values are never evaluated.", *told]
    write_task(task, output, {"": "\n".join(top), **reasons})
    derived = [f"{key}: {value}\n    {reasons[key]}" for key, value in to_plain(task).items() if key in reasons]
    return Plan(task, steps, [*told, "", *derived, "", *commands(dataset_dir, output, bool(labels))])


def _read_labelled(data: DataSet) -> tuple[list[CaseFacts], dict[int, str], list[str]]:
    """Facts of labelled cases, their labels, and what to warn of."""
    labels, notes = dict(data.labels), []
    facts = check_cases(data.labelled, CheckedLoadImaged(["image", "label"], num_classes=None))
    for case, found in zip(data.labelled, facts, strict=True):
        if labels and (strange := set(found.labels) - set(labels)):
            raise ValueError(
                f"{case['label']} holds the value {min(strange)}, which the data do not name (they name "
                f"{', '.join(f'{value} {name}' for value, name in labels.items())}): correct the label, or name it"
            )
    if not labels:
        labels = {value: unnamed(value) for value in sorted({value for case in facts for value in case.labels})}
        notes.append("the data name no labels: they are called by their values; give them names in the task")
    if not labels:
        raise ValueError(f"all labels of {data.place} contain only background: there is nothing to learn")
    counts = [len(case.percentiles) for case in facts]
    for case, count in zip(data.labelled, counts, strict=True):
        if count != counts[0]:
            raise ValueError(f"{case['image']} has {count} channels, {data.labelled[0]['image']} has {counts[0]}")
    return facts, labels, notes + label_warnings(facts, labels)


def _read_scans(cases: Sequence[Case]) -> tuple[list[CaseFacts], dict[int, str], list[str]]:
    """Facts of scans without labels, of those with the most frequent number of channels; and what to warn of."""
    load = CheckedLoadImaged("image")

    def attempt(number: int) -> CaseFacts | VolumeError:
        try:
            return case_facts(load(cases[number])["image"])
        except VolumeError as error:
            return error

    drawn = sorted(np.random.default_rng(0).permutation(len(cases))[:MOST_READ])
    with ThreadPool(READERS) as pool:
        results = list(tqdm(pool.imap(attempt, drawn), total=len(drawn), desc="reading", leave=False))
    facts = [result for result in results if isinstance(result, CaseFacts)]
    notes = [f"cannot be used: {error}" for error in results if isinstance(error, VolumeError)]
    if not facts:
        raise ValueError("no scan can be used:\n" + "\n".join(notes[:10]))
    if len(drawn) < len(cases):
        notes.append(f"{len(drawn)} of {len(cases)} scans were read, drawn at random")
    ((channels, usual),) = Counter(len(case.percentiles) for case in facts).most_common(1)
    if usual < len(facts):
        notes.append(f"{len(facts) - usual} scans have another number of channels than {channels}: they are left out")
    return [case for case in facts if len(case.percentiles) == channels], {}, notes


def commands(dataset_dir: str | Path, task: Path, labelled: bool) -> list[str]:
    """What to run with a task."""
    data, file = shlex.quote(str(dataset_dir)), shlex.quote(str(task))
    lines = [f"{task} is written. Look at it, edit it, then:"]
    if not labelled:
        return [*lines, f"digar pretrain {data} --task {file} -o PRETRAINED"]
    return [
        *lines,
        f"digar train {data} --task {file} -o MODEL",
        f"digar evaluate {data} -m MODEL -o SCORES",
        "digar predict IMAGES -m MODEL -o MASKS",
    ]
