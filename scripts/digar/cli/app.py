"""The ``digar`` command: each sub-command runs a config of the bundle or calls one function of the package.

Heavy imports wait until a command is chosen, so that help comes at once.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from digar import __version__
from digar.cli.bundle import BundleRun, bundle_root, find_weights, read_settings
from digar.cli.values import check_values

SPIN_COUNT = "1000"  # of OpenMP threads that wait for each other, before they sleep: docs/scaling.md
CHATTER = {"monai.bundle.workflows": logging.WARNING, "monai.data.nvimgcodec_pydicom_plugin": logging.ERROR}  # loggers
LONG_TRAINING = 12 * 3600  # seconds, from which a plan says how to get a shorter one


class ExportFormat(Enum):
    """Formats of exported networks."""

    torchscript = "torchscript"
    onnx = "onnx"


class Backend(Enum):
    """What runs the network of a folder inference."""

    pytorch = "pytorch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


ENDINGS = {ExportFormat.torchscript: ".ts", ExportFormat.onnx: ".onnx"}

app = typer.Typer(
    name="digar",
    help="Learn 3D anatomy from unlabelled CT and MR volumes, segment, classify. Research only: not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Data = Annotated[Path, typer.Argument(help="Your data: a task, a folder, or a list.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where results go.", show_default=False)]
BackendOption = Annotated[
    Backend, typer.Option("--backend", help="What runs the network; others than PyTorch are installed apart.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        help="A shipped model's name, a model's folder, a file of weights, or hf:OWNER/NAME; several are averaged.",
    ),
]
TaskFile = Annotated[Path | None, typer.Option("--task", help="task.yaml from `digar plan`.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run into the same output was stopped.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ID=VALUE", help="Set any id of the config. A value is part of a config, so code."),
]
ShowCommand = Annotated[
    bool, typer.Option("--show-command", help="Print the line of MONAI's command that does the same, and stop.")
]


def _version(shown: bool) -> None:
    if shown:
        print(f"digar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _run(said: str, run: BundleRun, show_command: bool, results: dict[str, Path], after: str = "") -> None:
    """Run a config; say first what begins, and in the end where the results are and what may follow."""
    if show_command:
        _say(run.command())
        return
    _say(said)
    began = time.monotonic()
    run.start()
    _say(f"done in {time.monotonic() - began:.0f} s")
    for name, path in results.items():
        if path.exists():
            _say(f"  {name}: {path}")
    if after:
        _say(f"next: {after}")


def _ids(settings: Sequence[str] | None, **ids: Any) -> dict[str, Any]:
    """Ids of a run: those given (paths absolute, so that any working folder does), then those of ``--set``."""
    given = {name: value for name, value in ids.items() if value is not None}
    given = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in given.items()}
    set_ids = read_settings(settings or [])
    check_values(set_ids)
    return {**given, **set_ids}


@app.command()
def plan(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="The task file to write.")] = Path("task.yaml"),
    spacing: Annotated[str | None, typer.Option(help="Voxel size in mm, e.g. 1.25 or 1.5,1.5,10.")] = None,
    memory: Annotated[float, typer.Option(help="GiB that a training step may take.")] = 4.0,
) -> None:
    """Look at your data and write down how to train on them: task.yaml.

    Example: digar plan DATA/Task91_ACDC -o cardiac.yaml
    """
    _say(f"reading {data}")
    from digar.data.planning import plan as write_plan

    wanted = None if spacing is None else [float(value) for value in spacing.split(",")]
    planned = write_plan(data, output, memory=memory, spacing=wanted)
    _say("\n".join(planned.lines))
    _say("timing a step")
    from digar.data.planning import BATCH_SIZE, PRETRAINING_BATCH_SIZE
    from digar.training.pace import duration, seconds_per_step

    pace = seconds_per_step(planned.task, BATCH_SIZE if planned.task.labels else PRETRAINING_BATCH_SIZE)
    seconds = planned.steps * pace
    words = f"{planned.steps} steps of about {pace:.2g} s: {duration(seconds)} on this machine"
    _say(f"{words}, reading and validating left out")
    if seconds > LONG_TRAINING:
        _say(f"shorter: smaller crops (--memory {memory / 4:g}), larger voxels (--spacing), or a GPU")


@app.command()
def pretrain(
    data: Data, output: Output, task: TaskFile = None, resume: Resume = False, settings: Settings = None,
    show_command: ShowCommand = False,
) -> None:  # fmt: skip
    """Learn from scans without labels, by predicting the next patch.

    Example: digar pretrain DATA/scans -o pretraining --task task.yaml
    """
    ids = _ids(
        settings, dataset_dir=data, output_dir=output, task=task, cache_dir=output / "cache", resume=resume or None
    )
    _run(
        f"pretraining on {data}", BundleRun(["pretrain.yaml"], "pretraining", ids), show_command,
        {"weights": output / "pretrained.pt", "log": output / "log.txt", "pictures": output / "pictures"},
        f"digar train TASK -o OUT --pretrained {output / 'pretrained.pt'}",
    )  # fmt: skip


@app.command()
def train(
    data: Data,
    output: Output,
    task: TaskFile = None,
    pretrained: Annotated[str | None, typer.Option(help="Weights to start from: a file, or as for --model.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which share of the cases is held out: 0, 1, ...")] = None,
    folds: Annotated[str | None, typer.Option(help="'all': one training after the other, each fold held out.")] = None,
    resume: Resume = False,
    settings: Settings = None,
    show_command: ShowCommand = False,
) -> None:
    """Learn to segment from labelled images; writes a model: a folder with model.pt and task.yaml.

    Example: digar train DATA/Task91_ACDC -o cardiac --task cardiac.yaml
    """
    if folds is not None and (folds != "all" or fold is not None):
        raise typer.BadParameter("takes 'all', and cannot be combined with --fold", param_hint="--folds")
    weights = None if pretrained is None else find_weights(pretrained)
    chosen = [fold] if folds is None else _all_folds(data, task, weights, settings)
    for number in chosen:
        place = output / f"fold_{number}" if folds else output
        going_on = ("auto" if folds else True) if resume else None  # a fold may not have begun
        ids = _ids(
            settings, dataset_dir=data, output_dir=place, task=task, pretrained=weights, fold=number, resume=going_on
        )
        _run(
            f"training on {data}" + ("" if number is None else f", fold {number} held out"),
            BundleRun(["train.json"], "training", ids), show_command,
            {"model": place / "model.pt", "log": place / "log.txt", "pictures": place / "pictures"},
            f"digar evaluate {data} -m {place} -o OUT, digar predict IMAGES -m {place} -o OUT",
        )  # fmt: skip


def _all_folds(data: Path, task: Path | None, pretrained: Path | None, settings: Sequence[str] | None) -> list[int]:
    from digar.data.layouts import read_data
    from digar.data.splits import fold_numbers
    from digar.data.task import find_task

    planned = find_task(task, [pretrained, bundle_root() / "models"])
    share = read_settings(settings or []).get("validation_share", planned.training.validation_share)
    return fold_numbers(read_data(data, labelled=True).labelled, share)


def _weights(models: Sequence[str] | None) -> dict[str, Any]:
    """Ids that name the weights of one model, or of several that are averaged."""
    files = [str(find_weights(model)) for model in (models or (None,))]
    return {"weights_file": files[0]} | ({"ensemble": files[1:]} if files[1:] else {})


def _network_overlay(ids: dict[str, Any], backend: Backend) -> list[str]:
    """The overlay by which an exported file or another backend computes in the network's place; notes it in the ids."""
    if backend is Backend.pytorch:
        return ["exported.json"] * ids["weights_file"].endswith(tuple(ENDINGS.values()))
    if "ensemble" in ids:
        raise typer.BadParameter("several models are averaged in PyTorch alone", param_hint="--backend")
    ids["backend"] = backend.value
    return ["backend.json"]


@app.command()
def evaluate(
    data: Data, output: Output, model: Models = None,
    part: Annotated[str, typer.Option(help="validation, training or all cases of the task.")] = "validation",
    backend: BackendOption = Backend.pytorch,
    settings: Settings = None, show_command: ShowCommand = False,
) -> None:  # fmt: skip
    """Score a model on labelled images: Dice, distances in mm, volumes in ml, pictures of the worst cases.

    Example: digar evaluate DATA/Task91_ACDC -m model -o scores
    """
    ids = _ids(settings, dataset_dir=data, output_dir=output, part=part, **_weights(model))
    _run(
        f"evaluating on the {part} cases of {data}",
        BundleRun(["train.json", "evaluate.json", *_network_overlay(ids, backend)], "run", ids), show_command,
        {"scores": output / "summary.csv", "cases": output / "cases.csv", "pictures": output / "worst.png"},
    )  # fmt: skip


@app.command()
def predict(
    images: Annotated[Path, typer.Argument(help="A folder (searched through), a file, or a list.")],
    output: Output,
    model: Models = None,
    dicom_seg: Annotated[bool, typer.Option("--dicom-seg", help="Write a DICOM SEG of every series as well.")] = False,
    backend: BackendOption = Backend.pytorch,
    settings: Settings = None,
    show_command: ShowCommand = False,
) -> None:
    """Segment images: a mask in each image's own space, a report, volumes in ml. Goes on where it was stopped.

    Example: digar predict DATA/images -o masks
    """
    ids = _ids(settings, dataset_dir=images, output_dir=output, dicom_seg=dicom_seg or None, **_weights(model))
    _run(
        f"segmenting {images}",
        BundleRun(["inference.json", *_network_overlay(ids, backend)], "run", ids), show_command,
        {"masks": output, "report": output / "report.html", "volumes": output / "volumes.csv"},
    )  # fmt: skip


@app.command()
def report(
    output: Annotated[Path, typer.Argument(help="Output folder of `digar predict`, of any number of runs.")],
) -> None:
    """Write the report of a folder of masks anew, from what all its runs noted.

    Example: digar report masks
    """
    from digar.inference.report import merge_reports

    _say(str(merge_reports(output)))


@app.command()
def embed(
    scans: Data,
    output: Output,
    model: Annotated[str, typer.Option("-m", "--model", help="Pretrained weights.", show_default=False)],
    settings: Settings = None,
    show_command: ShowCommand = False,
) -> None:
    """Turn every scan into a vector by pretrained weights.

    Example: digar embed DATA/scans -o embeddings -m pretraining/pretrained.pt
    """
    ids = _ids(settings, dataset_dir=scans, output_dir=output, weights_file=find_weights(model))
    _run(
        f"embedding {scans}", BundleRun(["pretrain.yaml", "embed.yaml"], "run", ids), show_command,
        {"vectors": output / "embeddings.npy", "rows": output / "embeddings.csv"},
    )  # fmt: skip


@app.command()
def compare(
    masks: Annotated[Path, typer.Argument(help="Folder of masks, whatever program made them.")],
    labels: Annotated[Path, typer.Argument(help="Folder of true labels; those without a mask are left out.")],
    output: Output,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for the pictures.")] = None,
    task: TaskFile = None,
    postfix: Annotated[str, typer.Option(help="What a mask's name adds to its label's.")] = "_mask",
) -> None:
    """Score masks against true labels: Dice, distances in mm, volumes in ml.

    Example: digar compare masks DATA/labels -o scores
    """
    _say(f"scoring {masks} against {labels}; scores go to {output / 'summary.csv'}")
    from digar.data.task import read_task
    from digar.evaluation.comparison import compare as score

    names = None if task is None else read_task(task).labels
    score(masks, labels, output, images=images, names=names, postfix=postfix)


@app.command()
def folds(
    evaluations: Annotated[list[Path], typer.Argument(help="The output folder of each fold's evaluation.")],
    output: Output,
) -> None:
    """Pool the evaluations of a cross-validation: one table over all cases.

    Example: digar folds model/fold_*/evaluation -o scores
    """
    from digar.evaluation.folds import merge_folds

    _say("\n".join([*merge_folds(evaluations, output), f"tables: {output}"]))


@app.command()
def lesions(
    data: Data,
    table: Annotated[Path, typer.Argument(help="The CSV to write.")],
) -> None:
    """Write where the structures of labelled data are, as a table for semantic sequences.

    Example: digar lesions DATA/Task04_Hippocampus lesions.csv
    """
    from digar.data.lesions import write_lesion_table

    _say(f"{write_lesion_table(data, table)} structures in {table}")


@app.command()
def sequence(
    data: Data,
    picture: Annotated[Path, typer.Argument(help="The PNG to write.")],
    kind: Annotated[str, typer.Option(help="A kind of sequence: spatial, contrast or semantic.")] = "spatial",
    index: Annotated[int, typer.Option(help="Which sample of this kind, from 0.")] = 0,
    settings: Settings = None,
) -> None:
    """Draw a sample of the pretraining as the network reads it: its parts, its patches and their order.

    Example: digar sequence DATA/scans page.png --set token_order=volume
    """
    from digar.training.sequence_figure import draw_sample

    config = bundle_root() / "configs" / "pretrain.yaml"
    draw_sample(config, _ids(settings, dataset_dir=data, bundle_root=bundle_root()), kind, index, picture)
    _say(f"picture: {picture}")


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `digar pretrain` or `digar train`.")],
    picture: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.", show_default=False)],
) -> None:
    """Draw the curves of runs into one picture: the training loss by step, the validation by epoch.

    Example: digar curves scratch pretrained -o curves.png
    """
    from digar.training.loss_figure import draw_curves

    draw_curves(runs, picture)
    _say(f"picture: {picture}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of AR-SSL4M.")],
    output: Annotated[Path, typer.Argument(help="The weights to write.")],
) -> None:
    """Convert a published checkpoint to this bundle's names, and say what was done.

    Example: digar convert AR-SSL4M.pt converted.pt
    """
    from digar.cli.convert import convert as convert_checkpoint

    _say("\n".join(convert_checkpoint(checkpoint, output)))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As for --model of predict.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for the file.", show_default=False)],
    to: Annotated[ExportFormat, typer.Option("--to", help="Format of the file.")] = ExportFormat.torchscript,
    settings: Settings = None,
    show_command: ShowCommand = False,
) -> None:
    """Write a model as one file for other programs: TorchScript or ONNX, with its task inside.

    Example: digar export hippocampus --to onnx -o exported
    """
    file = output / f"model{ENDINGS[to]}"
    ids = _ids(settings, weights_file=find_weights(model), exported_file=file)
    _run(
        f"exporting {model} to {to.value}; it will take crops of the task's size, in batches of any size",
        BundleRun(["inference.json", "export.json"], "export", ids), show_command, {"network": file},
        f"digar predict IMAGES -m {file} -o OUT",
    )  # fmt: skip


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not contain a task already.")],
    training: Annotated[int, typer.Option(help="Labelled studies; with --sources, studies and patients.")] = 24,
    test: Annotated[int, typer.Option(help="Unseen studies; none with --sources.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the whole series.")] = 0,
    sources: Annotated[
        bool, typer.Option("--sources", help="Studies of four contrasts and a table of lesions instead of a task.")
    ] = False,
) -> None:
    """Write a task of generated volumes, to try everything without data; or sources of every kind of sequence.

    Example: digar phantoms task
    """
    if sources:
        from digar.data.phantom_studies import write_sources

        _say("written: " + ", ".join(str(path) for path in write_sources(folder, training, seed)))
        return
    from digar.data.phantoms import write_phantoms

    _say(f"written: {write_phantoms(folder, training, test, seed)}")


@app.command(name="dicom-seg")
def dicom_seg(
    images: Annotated[Path, typer.Argument(help="What `digar predict` was given.")],
    masks: Annotated[Path, typer.Argument(help="Its output folder.")],
) -> None:
    """Write the masks of DICOM series as DICOM SEG.

    Example: digar dicom-seg DATA/series masks
    """
    _say(f"writing DICOM SEG beside the masks in {masks}")
    from digar.cli.command import SOME_FAILED
    from digar.inference.dicom_seg import write_folder

    failed = write_folder(images, masks)
    _say(
        "\n".join(f"{series}: {reason}" for series, reason in failed.items())
        or f"done; the report: {masks / 'report.html'}"
    )
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def serve(
    studies: Annotated[str, typer.Argument(help="A folder of images, or the address of a DICOMweb store.")],
    host: Annotated[str, typer.Option(help="Address that it listens on; it has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that it listens on.")] = 8000,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="A further name under which it may be called, such as a proxy's."),
    ] = None,
) -> None:
    """Serve the default model to 3D Slicer and OHIF through MONAI Label, which is installed apart.

    Example: digar serve DATA/images
    """
    _say(f"serving {studies} on {host}:{port}; Ctrl-C ends it")
    from digar.cli.serve import serve as start

    start(studies, host, port, hosts or [])


def main() -> None:
    """Run the command; an error is one line."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when PyTorch is imported
    from digar.cli.failure import explain_error

    sys.excepthook = explain_error
    for name, level in CHATTER.items():
        logging.getLogger(name).setLevel(level)
    typer.main.get_command(app)(prog_name="digar")
