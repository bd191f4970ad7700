"""A config for your own task: what its images are like, and what follows for the settings of every workflow.

python -m digar.data.planning --dataset_dir DATA/Task09_Spleen --output spleen.yaml

Follows nnU-Net's rules (Isensee et al., Nature Methods 2021) for spacing and CT intensities.
"""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import yaml
from tqdm import tqdm

from digar.data.datalists import READERS, Case, check_cases, labelled_cases, read_task, split_cases
from digar.data.training_range import span
from digar.volumes.checks import CheckedLoadImaged, intensity_percentiles
from digar.volumes.files import whole_file

SAMPLED_VOXELS = 10_000  # per case and channel, of those within labels
THICK = 3.0  # an axis is thick where its spacing is this many times the finest
FINEST_PATCH = 8  # voxels, where the spacing is finest; as in train.json
MOST_FULL_TOKENS = 1024  # of a crop; with more, full attention takes most of the step (docs/results.md)
DILATION = 2  # of train.json; the patch grid must divide by it
BATCH_SIZE = 2  # of train.json
VALIDATION_SHARE = 0.2  # of train.json
VALIDATIONS = 20  # in a training
TRAINING_STEPS = 3000  # at least, where MOST_EPOCHS allow (docs/results.md)
MOST_EPOCHS = 1000  # of very few cases: every epoch ends with a state on the disk
VOXEL_BYTES, TOKEN_BYTES = 1_000, 160_000  # of a training step, measured on a CPU in bf16 (peak resident memory)
GIB = 2**30


class CaseFacts(NamedTuple):
    """What one case tells. Axes run to the right, the front and the top, as the workflows turn every image.

    ``spacing`` mm and ``shape`` voxels per axis; ``percentiles`` ``(channels, 3)`` of the image's intensities;
    ``labelled`` ``(channels, n)``, a sample of the voxels within labels; ``labels``, the values that occur, 0 left out.
    """

    spacing: np.ndarray
    shape: np.ndarray
    percentiles: np.ndarray
    labelled: np.ndarray
    labels: list[int]


class Setting(NamedTuple):
    """One id of the config, its value, and why."""

    name: str
    value: Any
    reason: str


def read_facts(case: Case, load: CheckedLoadImaged) -> CaseFacts:
    """Read image and label of a case."""
    loaded = load(case)
    image, label = loaded["image"], loaded["label"][0].numpy()
    affine = image.affine.numpy()
    turned = nib.io_orientation(affine)[:, 0].argsort()  # the image's axis that runs along each axis of the world
    voxels = image.numpy()[:, label > 0]
    chosen = np.random.default_rng(0).permutation(voxels.shape[1])[:SAMPLED_VOXELS]
    return CaseFacts(
        spacing=nib.affines.voxel_sizes(affine)[turned],
        shape=np.array(label.shape)[turned],
        percentiles=np.array([intensity_percentiles(channel) for channel in image.numpy()]),
        labelled=voxels[:, chosen],
        labels=[int(value) for value in np.unique(label) if value > 0],
    )


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


def choose_epochs(num_cases: int) -> tuple[int, int, str]:
    """Epochs of fine-tuning, and epochs between two validations: few cases get as many steps as many do."""
    share = VALIDATION_SHARE if num_cases > 1 else 0.0
    training = len(split_cases([{}] * num_cases, share, seed=0, part="training"))
    steps = math.ceil(training / BATCH_SIZE)
    interval = math.ceil(min(TRAINING_STEPS / steps, MOST_EPOCHS) / VALIDATIONS)
    epochs = VALIDATIONS * interval  # the last one is validated
    return epochs, interval, f"{training} training cases: {epochs * steps} steps"


def choose_intensity(facts: Sequence[CaseFacts], modalities: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The transform that scales intensities to 0..1.

    CT values mean the same in every scan: one window, the 0.5 to 99.5 percentile of all labelled voxels. Others mean
    nothing outside their scan: each image and channel by its own 1 and 99.9 percentile.
    """
    if modalities and all(name.upper().startswith("CT") for name in modalities):
        labelled = np.concatenate([case.labelled.ravel() for case in facts])
        low, high = np.percentile(labelled, [0.5, 99.5]) if labelled.size else (0.0, 0.0)
        if low < high:
            window = {"a_min": round(float(low), 2), "a_max": round(float(high), 2)}
            scale = {"_target_": "ScaleIntensityRanged", "keys": "image", **window}
            return scale | {
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            }, "CT: window of the labelled voxels, 0.5 to 99.5 %"
    scale = {"_target_": "digar.volumes.intensities.ScaleByPercentilesd", "keys": "image"}
    return scale, "not CT: every image and channel by its own percentiles, 1 to 99.9"


def derive_settings(
    facts: Sequence[CaseFacts], modalities: Sequence[str], names: dict[str, str], memory: float, cache: float
) -> list[Setting]:
    """Everything that follows from the facts, with its reason.

    Args:
        facts: of all labelled cases.
        modalities: names of the channels; empty where the task does not tell.
        names: the label names by value, background included.
        memory: that a training step may take, GiB.
        cache: that the cached scans may take, GiB.
    """
    spacing, spacing_reason = target_spacing(np.stack([case.spacing for case in facts]))
    sizes = np.stack([case.shape * case.spacing / spacing for case in facts])
    patch, patch_reason = choose_patch(spacing)
    crop, crop_reason = choose_crop(sizes, spacing, patch, memory)
    intensity, intensity_reason = choose_intensity(facts, modalities)
    channels = len(facts[0].percentiles)
    epochs, interval, epochs_reason = choose_epochs(len(facts))
    tokens = math.prod(crop) // math.prod(patch)
    spanned = span(
        np.array([case.spacing for case in facts]),
        np.array([case.spacing * case.shape for case in facts]),
        np.array([case.percentiles for case in facts]),
    )
    cached = float(sizes.prod(axis=1).sum() * (channels + 1) * 4 / GIB)
    settings = [
        Setting("in_channels", channels, ", ".join(modalities) or "channels of the images"),
        Setting("num_classes", len(names), ", ".join(names.values())),
        Setting("label_names", list(names.values()), "written beside the masks"),
        Setting("spacing", spacing, spacing_reason),
        Setting("patch_size", patch, patch_reason),
        Setting("roi_size", crop, crop_reason),
        Setting(
            "attention", "full+sequence" if tokens <= MOST_FULL_TOKENS else "local+grid", f"{tokens} tokens a crop"
        ),
        Setting("sample_size", crop, "pretraining's crop: the same"),
        Setting("intensity", intensity, intensity_reason),
        Setting("max_epochs", epochs, epochs_reason),
        Setting("val_interval", interval, f"epochs between two of {VALIDATIONS} validations"),
        Setting("cache_rate", math.floor(100 * min(1, cache / cached)) / 100, f"all scans take {cached:.1f} GiB"),
        Setting("training_range", spanned, "least and most in the training images, which inference compares with"),
    ]
    if len(facts) == 1:
        settings.append(Setting("validation_share", 0.0, "one labelled case: nothing is left to validate with"))
    return settings


def warnings_about(facts: Sequence[CaseFacts], names: dict[str, str]) -> list[str]:
    """What a user should know of the labels: which never occur, and how many cases hold none."""
    found = [sum(int(value) in case.labels for case in facts) for value in names]
    never = [name for (value, name), count in zip(names.items(), found, strict=True) if value != "0" and not count]
    empty = sum(not case.labels for case in facts)
    notes = [f"label {name} occurs in no case: it cannot be learned" for name in never]
    return notes + ([f"{empty} of {len(facts)} cases hold no label at all"] if empty else [])


def describe(facts: Sequence[CaseFacts]) -> list[str]:
    """The data set in a few lines."""

    def median_and_span(values: Sequence[np.ndarray]) -> str:
        stacked = np.stack(values)
        rows = (np.median(stacked, axis=0), stacked.min(axis=0), stacked.max(axis=0))
        median, low, high = (" x ".join(f"{v:.4g}" for v in row) for row in rows)
        return f"{median} ({low} to {high})"

    lines = [
        f"{len(facts)} labelled cases, axes to the right, the front, the top",
        f"size in voxels: {median_and_span([case.shape for case in facts])}",
        f"spacing in mm: {median_and_span([case.spacing for case in facts])}",
    ]
    for channel in range(len(facts[0].percentiles)):
        inside = np.concatenate([case.labelled[channel] for case in facts])
        if inside.size:
            low, middle, high = np.percentile(inside, [0.5, 50, 99.5])
            lines.append(f"intensity within labels, channel {channel}: {middle:.4g} ({low:.4g} to {high:.4g}, 99 %)")
    return lines


def to_yaml(settings: Sequence[Setting], comments: Sequence[str]) -> str:
    """A readable config: comments on top, then every setting under its reason."""
    lines = [f"# {comment}" for comment in comments]
    for setting in settings:
        lines += ["", f"# {setting.reason}"]
        nested = isinstance(setting.value, dict)
        if nested:
            lines.append(f"{setting.name}:")
        for name, value in setting.value.items() if nested else [(setting.name, setting.value)]:
            flow = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").rstrip()
            lines.append(f"{'  ' if nested else ''}{name}: {flow}")
    return "\n".join(lines) + "\n"


def fingerprint(dataset_dir: str | Path, output: str | Path, memory: float = 4.0, cache: float = 8.0) -> list[str]:
    """Read every labelled case of an MSD task and write the overlay config for it.

    Args:
        dataset_dir: the task's folder.
        output: the YAML file.
        memory: that a training step may take, GiB; decides the crop.
        cache: that the scans kept in memory may take, GiB.

    Returns:
        What was found, derived and why, as lines.

    Raises:
        FileExistsError: the output exists; somebody may have edited it.
        FileNotFoundError, ValueError: the task cannot be used; every reason is named.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists, perhaps edited: choose another --output, or remove it first")
    task, cases = read_task(dataset_dir), labelled_cases(dataset_dir)
    modalities = [str(name) for name in task.get("modality", {}).values()]
    names = {str(value): str(name) for value, name in task.get("labels", {}).items()}
    if set(names) != {str(value) for value in range(len(names))} or len(names) < 2:
        raise ValueError(
            f"{Path(dataset_dir) / 'dataset.json'} must name its labels 0, 1, ... under 'labels', background first; "
            f"it has {json.dumps(names)}"
        )
    load = CheckedLoadImaged(["image", "label"], num_classes=len(names))
    check_cases(cases, load)
    with ThreadPool(READERS) as pool:
        facts = list(tqdm(pool.imap(partial(read_facts, load=load), cases), total=len(cases), leave=False))
    channels = [len(case.percentiles) for case in facts]
    for case, count in zip(cases, channels, strict=True):
        if count != channels[0]:
            raise ValueError(f"{case['image']} has {count} channels, {cases[0]['image']} has {channels[0]}")
    if modalities and len(modalities) != channels[0]:
        raise ValueError(
            f"{Path(dataset_dir) / 'dataset.json'} names {len(modalities)} modalities ({', '.join(modalities)}), "
            f"the images have {channels[0]} channels: correct one of them"
        )

    settings = derive_settings(facts, modalities, names, memory, cache)
    notes = [f"WARNING: {note}" for note in warnings_about(facts, names)]
    title = f"{task.get('name', Path(dataset_dir).name)}, derived by digar.data.planning; edit as you like"
    found = [*describe(facts), *notes]
    with whole_file(output) as temporary:
        temporary.write_text(to_yaml(settings, [title, *found]), encoding="utf-8")
    derived = [f"{s.name}: {json.dumps(s.value)}\n    {s.reason}" for s in settings]
    return [*found, "", *derived, "", *commands(dataset_dir, output)]


def commands(dataset_dir: str | Path, overlay: Path) -> list[str]:
    """What to run with the overlay."""
    run = "python -m monai.bundle run"
    files = {"training": ["train"], "": ["train", "evaluate"], "inference": ["inference"]}
    lines = [f"{overlay} is written; train, evaluate and infer with it:"]
    for name, configs in files.items():
        listed = ",".join([*(f"'configs/{config}.json'" for config in configs), f"'{overlay}'"])
        folder = "IMAGES" if name == "inference" else dataset_dir
        lines.append(
            f'{run}{" training" if name == "training" else ""} --config_file "[{listed}]" --dataset_dir {folder}'
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of an MSD task (dataset.json)")
    parser.add_argument("--output", type=Path, required=True, help="the config to write, a .yaml file")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB a training step may take (default: %(default)s)")
    parser.add_argument("--cache", type=float, default=8.0, help="GiB for scans in memory (default: %(default)s)")
    print("\n".join(fingerprint(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
