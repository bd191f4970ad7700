"""A task: what a model segments, on which grid, by which network. Plain values in a YAML file beside the weights.

A model is a folder that holds ``model.pt`` and ``task.yaml``. The file is written by planning and by training, edited
by people, and read by every workflow; nothing in it is ever evaluated.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from digar.volumes.files import whole_file
from digar.volumes.intensities import ScaleIntensityd

Codes = Mapping[int, Mapping[str, Sequence[str]]]
logger = logging.getLogger(__name__)

TASK_FILE = "task.yaml"
WEIGHTS_FILE = "model.pt"
MOST_LABEL = 1000  # the largest value in a label
PERCENTILES = "percentiles"  # the intensity rule: every image and channel by its own, 1 to 99.9
SAME_SPACING, NEAR_SPACING = 0.01, 0.15  # as a share; a training scales its samples by up to the second


@dataclass(frozen=True)
class Network:
    """The network's numbers, see :class:`digar.networks.SegmentationNetwork`."""

    size: str | Mapping[str, int] = "tiny"
    attention: str | Sequence[str] = "full+sequence"
    dilation: int | Sequence[int] = 2
    head: str = "light"
    feature_size: int = 16


@dataclass(frozen=True)
class Training:
    """What planning derives for a training."""

    epochs: int = 20
    pretraining_epochs: int = 50
    validation_share: float = 0.2
    cache_rate: float = 1.0


@dataclass(frozen=True)
class TrainedWith:
    """What the network has seen.

    ``flips``: axes along which samples were mirrored. The rest are least and greatest values of the images' spacing
    and extent (mm, axes sorted), and of each channel's intensity percentiles
    (:func:`digar.volumes.checks.intensity_percentiles`).
    """

    images: int
    flips: Sequence[int] = ()
    spacing_mm: Sequence[Sequence[float]] = ()
    extent_mm: Sequence[Sequence[float]] = ()
    intensity_percentiles: Sequence[Sequence[Sequence[float]]] = ()


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: of the task.
        channels: names of the image's channels.
        labels: value in the mask to name; 0 is the background and is not listed. Empty where scans have no labels.
        spacing: mm, that images are resampled to; axes run to the right, the front and the top.
        crop, patch: of the network, in voxels.
        classes: of a classification, in the order of the network's outputs.
        pretraining_crop: where it is another than ``crop``.
        intensity: ``percentiles``, or the window ``(low, high)`` that is scaled to 0..1.
        trained_with: None until a network has been trained.
        codes: value in the mask to what DICOM calls it: ``category``, ``type`` and perhaps ``modifier``, each as code,
            scheme (SCT is SNOMED CT) and meaning.
    """

    name: str
    channels: Sequence[str]
    labels: Mapping[int, str]
    spacing: Sequence[float]
    crop: Sequence[int]
    patch: Sequence[int]
    classes: Sequence[str] = ()
    pretraining_crop: Sequence[int] = ()
    network: Network = Network()
    intensity: str | Sequence[float] = PERCENTILES
    training: Training = Training()
    trained_with: TrainedWith | None = None
    codes: Codes = field(default_factory=dict)

    @property
    def in_channels(self) -> int:
        return len(self.channels)

    @property
    def num_classes(self) -> int:
        """Outputs of the network: of a segmentation the background and every value up to the greatest label."""
        return len(self.classes) or max(self.labels, default=0) + 1

    @property
    def sample_size(self) -> Sequence[int]:
        """Of pretraining, in voxels."""
        return self.pretraining_crop or self.crop

    @property
    def training_range(self) -> dict[str, Any] | None:
        """What inference compares images with, see :class:`digar.volumes.checks.CheckedReader`."""
        return asdict(self.trained_with) if self.trained_with and self.trained_with.spacing_mm else None


# Files


def model_file(path: str | Path) -> Path:
    """The weights that a path means: itself, or where it is a model's folder, the weights in it.

    Raises:
        FileNotFoundError: the folder contains no weights, or several and none is ``model.pt``.
    """
    path = Path(path)
    if not path.is_dir() or (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE if path.is_dir() else path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        found = f"several weights ({', '.join(file.name for file in files)})" if files else "no weights"
        raise FileNotFoundError(f"the folder {path} holds {found}: name a model's folder (model.pt, task.yaml) or file")
    return files[0]


def task_file(path: str | Path) -> Path:
    """Where the task of a model lies: in its folder, beside its weights."""
    path = Path(path)
    return (path if path.is_dir() else path.parent) / TASK_FILE


def find_task(
    task: str | Path | None, beside: Sequence[str | Path | None] = (), default: str | Path | None = None
) -> Task:
    """The task of a run.

    Args:
        task: a task file, or a model's folder; None for the first that lies beside one of the following.
        beside: weights files or folders of models; None is passed over.
        default: the model whose task is taken, with a warning, for weights that lie without one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see :func:`read_task`.
    """
    if task is not None:
        return read_task(task_file(task) if Path(task).is_dir() else task)
    given = [Path(path) for path in beside if path is not None]
    for path in given:
        if task_file(path).is_file():
            return read_task(task_file(path))
    path = given[0]
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}: train first, or name an existing file or folder")
    if default is not None and path.is_file():
        found = read_task(task_file(default))
        logger.warning("there is no %s beside %s: it is taken for weights of the task %s", TASK_FILE, path, found.name)
        return found
    raise FileNotFoundError(
        f"there is no {TASK_FILE} beside {path}, so nothing tells what these weights are for: pass --task with a task "
        "file (digar plan writes one for your data) or with the folder of a model"
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_task(file: str | Path) -> Task:
    """Read and check a task file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names the file, the key, and what it takes.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no task file {file}: pass --task with a task file or the folder of a model")
    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return parse_task(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def parse_task(content: Any) -> Task:
    """A task from plain values.

    Raises:
        ValueError: names the key and what it takes.
    """
    task: Task = _build(Task, content, "")
    if max(task.labels, default=0) > MOST_LABEL:
        raise ValueError(f"labels: {max(task.labels)} is too large a value, {MOST_LABEL} is the largest")
    if strange := set(task.codes) - set(task.labels):
        raise ValueError(f"codes: {min(strange)} is not one of the labels")
    if task.labels and task.classes:
        raise ValueError("labels and classes cannot both be given: labels are of a segmentation, classes of a scan")
    return task


def write_task(task: Task, file: str | Path, comments: Mapping[str, str] | None = None) -> None:
    """Write a task file.

    Args:
        task: to be written.
        file: its path.
        comments: by key, written above it; "" for the top of the file.
    """
    comments = comments or {}
    lines = [f"# {_one_line(text)}" for text in comments.get("", "").split("\n") if text]
    for key, value in to_plain(task).items():
        if key in comments:
            lines.append(f"# {_one_line(comments[key])}")
        lines.append(yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=110).rstrip())
    with whole_file(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def to_plain(task: Task) -> dict[str, Any]:
    """The values of a task as a file holds them; what is empty or not known is left out."""
    plain = {
        key: value for key, value in asdict(task).items() if value not in (None, ()) and (key, value) != ("codes", {})
    }
    if task.classes:
        del plain["labels"]
    if task.trained_with:
        known = plain["trained_with"].items()
        plain["trained_with"] = {key: value for key, value in known if value or key == "flips"}
    return plain


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


# Reading values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a name; put a number or yes and no in quotes")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ValueError("must be a number")
    return value


def _positive(value: Any) -> float:
    if _number(value) <= 0:
        raise ValueError("must be above 0")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError("must be a share from 0 to 1")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number above 0")
    return value


def _axis(value: Any) -> int:
    if isinstance(value, bool) or value not in (0, 1, 2):
        raise ValueError("must be an axis: 0, 1 or 2")
    return int(value)


def _list(item: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], tuple]:
    def read(value: Any) -> tuple:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise ValueError("must be a list" + (f" of {length}" if length else ""))
        return tuple(item(entry) for entry in value)

    return read


def _axes(item: Callable[[Any], Any]) -> Callable[[Any], tuple]:
    """Three values, or one for all axes."""
    return lambda value: _list(item, 3)(value if isinstance(value, (list, tuple)) else [value] * 3)


def _labels(value: Any) -> dict[int, str]:
    if not isinstance(value, dict):
        raise ValueError("must be values with their names, as {1: liver, 2: tumour}; {} for scans without labels")
    for label in value:
        if isinstance(label, bool) or not isinstance(label, int) or label < 1:
            raise ValueError(f"{label!r} must be a whole number above 0, as in the masks; 0 is always the background")
    names = {label: _text(value[label]) for label in sorted(value)}
    if len(set(names.values())) < len(names):
        raise ValueError("two labels have the same name")
    return names


def _codes(value: Any) -> dict[int, dict[str, tuple[str, ...]]]:
    """Codes of labels, as :class:`Task` has them; their scheme and number are not looked up."""
    coded = _list(lambda word: str(word) if isinstance(word, int) and not isinstance(word, bool) else _text(word), 3)
    kinds = {"category", "type"}
    for label, entry in value.items() if isinstance(value, dict) else [(None, None)]:
        if not isinstance(entry, dict) or not kinds <= set(entry) <= kinds | {"modifier"}:
            raise ValueError(
                f"{label!r} must have a category, a type and perhaps a modifier, as "
                "{1: {category: [91723000, SCT, Anatomical Structure], type: [10200004, SCT, Liver]}}"
            )
    return {label: {kind: coded(code) for kind, code in entry.items()} for label, entry in value.items()}


def _intensity(value: Any) -> str | tuple[float, float]:
    if value == PERCENTILES:
        return PERCENTILES
    if isinstance(value, (str, dict)):
        raise ValueError(f"must be {PERCENTILES}, or a window: [low, high]")
    low, high = _list(_number, 2)(value)
    if not low < high:
        raise ValueError("must be a window [low, high], the first below the second")
    return low, high


def _size(value: Any) -> str | dict[str, int]:
    if isinstance(value, dict):
        return {_text(name): _count(number) for name, number in value.items()}
    return _text(value)


def _attention(value: Any) -> str | tuple[str, ...]:
    return _list(_text)(value) if isinstance(value, (list, tuple)) else _text(value)


def _dilation(value: Any) -> int | tuple[int, ...]:
    return _list(_count, 3)(value) if isinstance(value, (list, tuple)) else _count(value)


_READERS: dict[type, dict[str, Callable[[Any], Any]]] = {
    Network: {
        "size": _size,
        "attention": _attention,
        "dilation": _dilation,
        "head": _text,
        "feature_size": _count,
    },
    Training: {
        "epochs": _count,
        "pretraining_epochs": _count,
        "validation_share": _share,
        "cache_rate": _share,
    },
    TrainedWith: {
        "images": _count,
        "flips": _list(_axis),
        "spacing_mm": _list(_list(_number, 3), 2),
        "extent_mm": _list(_list(_number, 3), 2),
        "intensity_percentiles": _list(_list(_list(_number, 2), 3)),
    },
}
_READERS[Task] = {
    "name": _text,
    "channels": _list(_text),
    "labels": _labels,
    "classes": _list(_text),
    "spacing": _axes(_positive),
    "crop": _axes(_count),
    "patch": _axes(_count),
    "pretraining_crop": _axes(_count),
    "network": lambda value: _build(Network, value, "network."),
    "intensity": _intensity,
    "training": lambda value: _build(Training, value, "training."),
    "trained_with": lambda value: _build(TrainedWith, value, "trained_with."),
    "codes": _codes,
}
_REQUIRED = {Task: ("name", "channels", "spacing", "crop", "patch"), TrainedWith: ("images",)}


def _build(kind: type, content: Any, prefix: str) -> Any:
    """A dataclass from a mapping, with errors that name the key."""
    if not isinstance(content, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'a task'} must hold keys with values, not {content!r}")
    readers = _READERS[kind]
    for key in content:
        if key not in readers:
            raise ValueError(f"{prefix}{key} is not a key of a task; the keys are {', '.join(readers)}")
    missing = [key for key in _REQUIRED.get(kind, ()) if key not in content]
    if missing:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    values: dict[str, Any] = {"labels": {}} if kind is Task else {}
    for key, value in content.items():
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            named = str(error).startswith(f"{key}.")
            raise ValueError(str(error) if named else f"{prefix}{key}: {value!r} {error}") from None
    return kind(**values)


# Overriding


def with_overrides(task: Task, in_channels: int, num_classes: int | None = None, **values: Any) -> Task:
    """The task that a run has in fact, where ids of the config were given other values than the task's.

    Another number of channels or classes has no names from the task: they are called ``channel 0``, ``label 1``, ...

    Args:
        task: as it was read.
        in_channels, num_classes: of the run's network.
        values: of other keys of the task, and of its network's; the ``intensity`` is a
            :class:`digar.volumes.intensities.ScaleIntensityd`.

    Raises:
        ValueError: names the key and what it takes.
    """
    plain = to_plain(task)
    if (scaling := values.get("intensity")) is not None:
        if not isinstance(scaling, ScaleIntensityd):
            raise ValueError(
                f"intensity: a {type(scaling).__name__} is not one of the rules that a task can hold, "
                "so it would be unknown what a network was trained with: set --intensity_rule instead"
            )
        values["intensity"] = scaling.rule
    for key, value in values.items():
        (plain["network"] if key in plain["network"] else plain)[key] = value
    if in_channels != task.in_channels:
        plain["channels"] = [f"channel {number}" for number in range(in_channels)]
    if values.get("classes"):
        plain["labels"] = {}
    elif num_classes not in (None, task.num_classes):
        plain["labels"] = {value: unnamed(value) for value in range(1, num_classes)}
    if plain.get("labels") != to_plain(task).get("labels"):
        plain["codes"] = {}
    return parse_task(plain)


def unnamed(label: int) -> str:
    """What a label is called that has no name."""
    return f"label {label}"


def label_name(labels: Mapping[int, str], label: int) -> str:
    """The name of a label value, or a substitute if it has none."""
    return labels.get(label, unnamed(label))


# Weights and their task


class Contradiction(NamedTuple):
    """Where a run differs from what its weights were trained for: the key, and what that does to masks."""

    key: str
    wrong: bool  # masks would be wrong, rather than perhaps worse
    text: str


def check_models(weights_files: Sequence[str | Path], task: Task, mirroring: Sequence[int] = ()) -> None:
    """Compare what a run does with what its weights were trained for, by the task beside them.

    Args:
        weights_files: of the run, files or models' folders.
        task: of the run.
        mirroring: axes along which windows are mirrored.

    Raises:
        ValueError: names everything by which masks would be wrong, with the key and both values.
    """
    for weights in weights_files:
        file = task_file(weights)
        if not file.is_file():
            logger.warning("there is no %s: nothing tells whether these weights were trained for this task", file)
            continue
        found = contradictions(read_task(file), task, mirroring)
        for other in found:
            if not other.wrong:
                logger.warning("%s: %s", file, other.text)
        wrong = [other.text for other in found if other.wrong]
        if wrong:
            raise ValueError(
                f"{weights} was trained for another task than this run has ({file}):\n"
                + "\n".join(wrong)
                + "\nleave these options out, or name other weights"
            )


def compare_with_pretraining(pretrained: str | Path | None, task: Task) -> None:
    """Warn where a training differs from the pretraining that it starts from, if a task tells of that."""
    if pretrained is None or not task_file(pretrained).is_file():
        return
    for other in contradictions(read_task(task_file(pretrained)), task):
        if other.key in ("channels", "spacing", "patch", "network"):
            logger.warning("%s: %s", task_file(pretrained), other.text)


def contradictions(own: Task, used: Task, mirroring: Sequence[int] = ()) -> list[Contradiction]:
    """What weights of one task do in another.

    Args:
        own: the task that the weights were trained for.
        used: the task that they are used for.
        mirroring: axes along which windows are mirrored.
    """
    found: list[Contradiction] = []

    def compare(key: str, effect: str, show: Callable[[Any], str], wrong: bool = True) -> None:
        before, after = getattr(own, key), getattr(used, key)
        if before != after:
            found.append(Contradiction(key, wrong, f"{key}: trained for {show(before)}, not {show(after)}: {effect}"))

    if own.in_channels != used.in_channels:
        compare("channels", "the network takes another number", _names)
    compare("labels", "values would stand for other structures", _names)
    compare("classes", "scores would be those of other classes", _names)
    compare("patch", "the network would compute something else", _sizes)
    compare("network", "the network would compute something else", _network)
    difference = max(abs(a / b - 1) for a, b in zip(used.spacing, own.spacing, strict=True))
    if difference > SAME_SPACING:
        near = difference <= NEAR_SPACING
        effect = f"structures would have {'slightly ' * near}another size than learned"
        compare("spacing", effect, lambda spacing: f"{_sizes(spacing)} mm", wrong=not near)
    compare("intensity", "tissues would have other values than learned", _rule)
    compare("crop", "masks may be worse, or better where more is seen at once", _sizes, wrong=False)
    if mirroring and own.trained_with is None:
        text = (
            "mirroring: nothing tells whether the network was trained with mirrored images; without, masks are spoilt"
        )
        found.append(Contradiction("mirroring", False, text))
    elif unseen := sorted(set(mirroring) - set(own.trained_with.flips if own.trained_with else ())):
        text = (
            f"mirroring: the network was trained without mirrored images along axes {unseen}: it would take left for "
            "right, and the average would spoil its masks"
        )
        found.append(Contradiction("mirroring", True, text))
    return found


def _names(names: Mapping[int, str] | Sequence[str]) -> str:
    listed = [f"{value} {name}" for value, name in names.items()] if isinstance(names, Mapping) else names
    return ", ".join(listed) or "none"


def _sizes(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def _network(network: Network) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(network).items())


def _rule(intensity: str | Sequence[float]) -> str:
    return intensity if isinstance(intensity, str) else f"the window {intensity[0]:g} to {intensity[1]:g}"
