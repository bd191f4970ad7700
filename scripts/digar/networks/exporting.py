"""A trained network as one file for other programs, with its task inside: TorchScript or ONNX."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import Tensor, nn

from digar import __version__
from digar.data.task import Task, read_task, task_file, to_plain, write_task
from digar.networks.of_task import load_model, segmentation_network
from digar.volumes.files import file_hash, whole_file

logger = logging.getLogger(__name__)
OPSET = 18
TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx")  # loggers that report every folded constant


def export_network(network: nn.Module, task: Task, file: str | Path) -> None:
    """Write a network as TorchScript (``.ts``) or ONNX (``.onnx``), and its task beside it unless one is there.

    The file takes ``(B, C, X, Y, Z)`` float32 of the task's crop, with any B, and gives logits. What it is for is
    inside: ``digar`` (the version), ``task`` (the task as YAML), ``input`` and ``output`` (what goes in and comes out),
    as ONNX's metadata properties, or in ``metadata.json`` of the TorchScript archive.

    Args:
        network: with its weights.
        task: its task.
        file: to be written; its ending says which format.

    Raises:
        FileExistsError: another model's task is in the folder.
        ImportError: ONNX, and onnx is not installed.
        ValueError: another ending.
    """
    file, beside = Path(file), task_file(file)
    if file.suffix not in WRITERS:
        raise ValueError(f"{file}: the name of an exported network must end in {' or '.join(WRITERS)}")
    text = _text(task)
    if beside.exists() and _text(read_task(beside)) != text:
        raise FileExistsError(f"{beside} is the task of another model: export into another folder")
    size = " x ".join(str(side) for side in (task.in_channels, *task.crop))
    facts = {
        "digar": __version__,
        "task": text,
        "input": f"image: float32, B x {size} for any B, at the task's spacing, intensities scaled by its rule",
        "output": f"pred: float32 logits, B x {task.num_classes} x the same size",
    }
    sample = torch.zeros(1, task.in_channels, *task.crop)
    with whole_file(file) as temporary:
        WRITERS[file.suffix](network.eval().cpu(), sample, facts, temporary)
    if not beside.exists():
        write_task(task, beside)


def cached_onnx(weights_file: str | Path, cache_dir: str | Path | None = None) -> str:
    """A model as an ONNX file in a cache, exported on its first use; a changed model gets another file.

    Args:
        weights_file: of a model, with its task beside it; an ONNX file is given back as it is.
        cache_dir: of all such files, by default ``~/.cache/digar``; it can be deleted at any time.

    Raises:
        FileNotFoundError, ValueError: see :func:`digar.networks.of_task.load_model`; or it is a TorchScript file.
        ImportError: onnx is not installed.
    """
    weights = Path(weights_file)
    if weights.suffix == ".onnx":
        return str(weights)
    if weights.suffix == ".ts":
        raise ValueError(f"{weights} is TorchScript, which only PyTorch runs: name the model itself, or an ONNX file")
    task = read_task(task_file(weights))
    key = hashlib.sha256(f"{file_hash(weights)} {__version__} {torch.__version__}\n{_text(task)}".encode()).hexdigest()
    cache = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "digar")
    file = cache / key[:24] / "model.onnx"
    if not file.is_file():
        logger.info("exporting %s to %s, once for this model", weights, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        network = load_model(segmentation_network(task), [weights], task)
        export_network(network, task, file)
    return str(file)


def _text(task: Task) -> str:
    return yaml.safe_dump(to_plain(task), sort_keys=False)


def _torchscript(network: nn.Module, sample: Tensor, facts: dict[str, str], file: Path) -> None:
    with file.open("wb") as stream:
        save_net_with_metadata(convert_to_torchscript(network), stream, meta_values=facts)


def _onnx(network: nn.Module, sample: Tensor, facts: dict[str, str], file: Path) -> None:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{file.suffix} needs onnx: pip install -r requirements-export.txt") from error
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    model = convert_to_onnx(
        network,
        [sample],
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": [0], "pred": [0]},  # batches of any size
        opset_version=OPSET,
        verbose=False,
    )
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, file)


WRITERS: dict[str, Callable[[nn.Module, Tensor, dict[str, str], Path], None]] = {".ts": _torchscript, ".onnx": _onnx}
