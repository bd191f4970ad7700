"""Fine-tuning compared at equal time: DiGAR's modes and peers on the same crops, augmentation, loss and schedule.

    python -m benchmarks.finetune measure --dataset DATA/Task04_Hippocampus --output runs/compare
    python -m benchmarks.finetune train none DynUNet --dataset DATA/Task04_Hippocampus --output runs/compare --minutes 8
    python -m benchmarks.finetune table --output runs/compare

``measure`` times the training step of every arm alone, in turns; ``train`` gives each arm the number of steps that fit
into the minutes at that pace, so that other load does not decide. Every run is ``configs/train.json`` with a few ids
replaced (``--ids``; one output folder for one choice of them). It goes on where it was stopped, is validated once, at
its end, on the held-out cases, and adds a row to ``rows.jsonl``; a run that has its row is not repeated. ``table``
prints them, with a line for each arm not reached.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from digar.networks.heads import HeadSizes, LightHead
from digar.networks.patches import from_patches
from digar.networks.settings import BackboneSettings, axes
from digar.networks.transformer import Backbone
from digar.volumes.pictures import save_figure
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

from benchmarks.measure import machine_facts, print_machine, print_table, seconds_in_turns

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = "{output}/pretrained/{name}.pt"  # where `train` looks for the weights of a pretrained arm


class WithoutTransformer(nn.Module):
    """The light head alone: stem, join and decoder as they are, the token map zero."""

    def __init__(self, patch_size: int, in_channels: int, out_channels: int, feature_size: int) -> None:
        super().__init__()
        self.head = LightHead(HeadSizes(in_channels, out_channels, 1, 0, axes(patch_size, "patch_size"), feature_size))

    def forward(self, image: Tensor) -> Tensor:
        skips = self.head.stem(image)
        return self.head([torch.zeros_like(skips[-1][:, :1])], skips)


class LinearProbe(nn.Module):
    """Frozen features: a linear layer gives every voxel of a patch its logits from the backbone's last token."""

    def __init__(self, image_size: Sequence[int], patch_size: int, out_channels: int, **backbone: Any) -> None:
        super().__init__()
        self.backbone = Backbone(BackboneSettings(image_size, patch_size, **backbone)).requires_grad_(False)
        self.head = nn.Linear(self.backbone.hidden_size, out_channels * math.prod(self.backbone.patch_size))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.backbone.patches_only(self.backbone(image)[-1])
        return from_patches(self.head(tokens), image.shape[2:], self.backbone.patch_size)


class Padded(nn.Module):
    """A network that wants each axis to be a multiple of a number: the image is zero-padded, the logits cut back."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        x, y, z = image.shape[2:]
        missing = [-n % self.multiple for n in (x, y, z)]
        return self.network(F.pad(image, [0, missing[2], 0, missing[1], 0, missing[0]]))[..., :x, :y, :z]


def peer(network: dict[str, Any]) -> dict[str, Any]:
    """The ids of a network that has no backbone of ours: AdamW with the same rate."""
    optimizer = {
        "_target_": "torch.optim.AdamW",
        "params": "$@network_def.parameters()",
        "lr": "@learning_rate",
        "weight_decay": "@weight_decay",
        "fused": True,
    }
    return {"network_def": network, "optimizer": optimizer}


CHANNELS = {"in_channels": "@in_channels", "out_channels": "@num_classes"}
DEFAULT = {"patch_size": 8, "attention": "full+sequence", "gate_init": 0.5}
FINE = {"patch_size": 4, "dilation": 2}  # tokens of 4^3 voxels
DYNUNET = {
    "_target_": "monai.networks.nets.DynUNet",
    **CHANNELS,
    "spatial_dims": 3,
    "kernel_size": [3, 3, 3, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [32, 64, 128, 256],
}
UNETR = {
    "_target_": "monai.networks.nets.UNETR",
    **CHANNELS,
    "img_size": "$tuple(-(-n // 16) * 16 for n in @roi_size)",
    "hidden_size": 384,
    "mlp_dim": 1536,
    "num_heads": 6,
}
SWIN = {"_target_": "monai.networks.nets.SwinUNETR", **CHANNELS, "feature_size": 24}
PROBE = {
    "_target_": "benchmarks.finetune.LinearProbe",
    "image_size": "@roi_size",
    "patch_size": "@patch_size",
    "out_channels": "@num_classes",
    "in_channels": "@in_channels",
    "size": "@network_size",
    "attention": "@attention",
    "dilation": "@dilation",
    "gate_init": "@gate_init",
}
LIGHT = {"_target_": "benchmarks.finetune.WithoutTransformer", **CHANNELS, "feature_size": "@feature_size"}

ARMS: dict[str, dict[str, Any]] = {
    "none": {**FINE, "attention": "none"},
    "[local, grid]": {**FINE, "attention": ["local", "grid"]},
    "[local, grid] pretrained": {**FINE, "attention": ["local", "grid"], "pretrained": "local-grid"},
    "local+grid 0.5": {**FINE, "attention": "local+grid", "gate_init": 0.5},
    "local+grid 0.01": {**FINE, "attention": "local+grid", "gate_init": 0.01},
    "no transformer": peer({**LIGHT, "patch_size": 4}),
    "none 8^3": {"patch_size": 8, "attention": "none"},
    "full+sequence 8^3": DEFAULT,
    "full+sequence 8^3 pretrained": {**DEFAULT, "pretrained": "full-sequence"},
    "full+sequence 8^3 masked": {**DEFAULT, "pretrained": "masked"},
    "probe 8^3 random": {**DEFAULT, **peer(PROBE)},
    "probe 8^3 pretrained": {**DEFAULT, **peer(PROBE), "pretrained": "full-sequence", "inherit_gate": True},
    "probe 8^3 masked": {**DEFAULT, **peer(PROBE), "pretrained": "masked", "inherit_gate": True},
    "no transformer 8^3": peer({**LIGHT, "patch_size": 8}),
    "DynUNet": peer(DYNUNET),
    "UNETR": peer({"_target_": "benchmarks.finetune.Padded", "network": UNETR, "multiple": 16}),
    "SwinUNETR": peer({"_target_": "benchmarks.finetune.Padded", "network": SWIN, "multiple": 32}),
}  # fmt: skip


def workflow(arm: str, dataset: str, output: Path, ids: dict[str, Any]) -> ConfigWorkflow:
    """``configs/train.json`` with the ids of an arm, initialised.

    Args:
        arm: a name in ``ARMS``.
        dataset: folder of an MSD task.
        output: folder of the run.
        ids: further ids; they win.

    Raises:
        FileNotFoundError: the arm starts from weights that are not there.
    """
    settings = {**ARMS[arm], "num_workers": 0, "dataset_dir": dataset, "output_dir": str(output)}
    settings |= {"weights_file": str(output / "model.pt"), **ids}
    flow = ConfigWorkflow(
        config_file=str(ROOT / "configs/train.json"),
        logging_file=str(ROOT / "configs/logging.conf"),
        meta_file=str(ROOT / "configs/metadata.json"),
        workflow_type="training",
        run_id="training",
        bundle_root=str(ROOT),
        **settings,
    )
    flow.initialize()
    return flow


def training_step(flow: ConfigWorkflow) -> Callable[[], None]:
    """One step as the trainer takes it: a batch loaded and augmented, forward, backward, optimizer."""
    content = flow.parser.get_parsed_content
    network, optimizer, loss_function = (content(name) for name in ("network", "optimizer", "loss_function"))
    inferer, loader, device = content("train#inferer"), content("train#dataloader"), content("device")

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield from loader

    stream = batches()
    network.train()

    def step() -> None:
        batch = next(stream)
        optimizer.zero_grad()
        loss_function(inferer(batch["image"].to(device), network), batch["label"].to(device)).backward()
        optimizer.step()

    return step


def measure(names: Sequence[str], dataset: str, output: Path, rounds: int, ids: dict[str, Any]) -> None:
    """Write the median seconds of a training step of each arm to ``steps.json``."""
    scratch = {"pretrained": None, "label_ratio": 0.05, **ids}
    flows = {name: workflow(name, dataset, output / "measure", scratch) for name in names}
    device = flows[names[0]].parser.get_parsed_content("device").type
    steps = {name: training_step(flow) for name, flow in flows.items()}
    seconds = {name: statistics.median(s) for name, s in seconds_in_turns(steps, rounds, device).items()}
    print_machine(machine_facts(device))
    print_table("Training step", ["arm", "seconds"], list(seconds.items()))
    (output / "steps.json").write_text(json.dumps(seconds, indent=2) + "\n")


def train(name: str, dataset: str, output: Path, minutes: float, seed: int, ids: dict[str, Any]) -> None:
    """Train an arm for the steps that fit into the minutes, and add its row.

    Raises:
        FileNotFoundError: the step was not measured, or the arm's pretrained weights are missing.
    """
    ratio = ids.get("label_ratio", 1.0)
    folder = output / f"{name.replace(' ', '_')}_{minutes:g}min_{ratio:g}_{seed}"
    key = {"arm": name, "minutes": minutes, "label_ratio": ratio, "seed": seed}
    if any(all(row[k] == v for k, v in key.items()) for row in read_rows(output)):
        print(f"{folder.name} has its row")
        return
    seconds = json.loads((output / "steps.json").read_text(encoding="utf-8"))[name]
    if ARMS[name].get("pretrained"):
        ids = {**ids, "pretrained": PRETRAINED.format(output=output, name=ARMS[name]["pretrained"])}
    # another seed also draws other cases where only a share of the labels is used
    ids = {**ids, "seed": seed, "label_seed": seed, "resume": "auto"}
    epochs = f"$max(round({minutes * 60 / seconds} / len(@train#dataloader)), 1)"
    flow = workflow(name, dataset, folder, {**ids, "max_epochs": epochs, "val_interval": "$@max_epochs + 1"})
    start = time.perf_counter()
    flow.run()
    wall = time.perf_counter() - start
    flow.parser.get_parsed_content("training_run").leave()  # a run that a signal stopped is not scored
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()  # the last weights
    network = flow.parser.get_parsed_content("network_def")
    cases = evaluator.state.metric_details["val_mean_dice"].nanmean(dim=1)
    row = {
        **key,
        "steps": flow.parser.get_parsed_content("total_steps"),
        "seconds_per_step": seconds,
        "dice": evaluator.state.metrics["val_mean_dice"],
        "dice_per_class": evaluator.state.metric_details["val_mean_dice"].nanmean(dim=0).tolist(),
        "spread": cases.std().item(),
        "worst": cases.min().item(),
        "gate_shares": network.backbone.gate_shares() if hasattr(network, "backbone") else [],
        "parameters": sum(p.numel() for p in network.parameters()),
        "wall_minutes": wall / 60,
    }
    flow.finalize()
    with (output / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{folder.name}: mean Dice {row['dice']:.4f}")


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all finished runs."""
    file = output / "rows.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def print_rows(output: Path) -> None:
    """A table for each pair of minutes and label ratio: means and spread over seeds, and the arms not reached."""
    rows = read_rows(output)
    for minutes, ratio in sorted({(row["minutes"], row["label_ratio"]) for row in rows}, reverse=True):
        cells = []
        for arm in ARMS:
            runs = [r for r in rows if (r["arm"], r["minutes"], r["label_ratio"]) == (arm, minutes, ratio)]
            if not runs:
                cells.append([arm, "not run"] + [None] * 7)
                continue
            dice = [r["dice"] for r in runs]
            classes = [" ".join(f"{d:.3f}" for d in r["dice_per_class"]) for r in runs[:1]]
            shares = " ".join(f"{share:.2f}" for share in runs[0]["gate_shares"])
            deviation = f"{statistics.stdev(dice):.4f}" if len(dice) > 1 else None
            cells.append(
                [arm, f"{statistics.mean(dice):.4f}", deviation, len(dice), *classes, f"{runs[0]['spread']:.3f}",
                 f"{min(r['worst'] for r in runs):.3f}", runs[0]["steps"], shares]
            )  # fmt: skip
        header = ["arm", "Dice", "over seeds", "seeds", "classes", "over cases", "worst", "steps", "gate shares"]
        print_table(f"{minutes:g} minutes, label ratio {ratio:g}", header, cells)


def draw_rows(output: Path, picture: Path) -> None:
    """Mean Dice over the share of labels, a line per arm; bars span the seeds.

    Raises:
        ValueError: there is no row to draw, or there are rows of unequal time at one share.
    """
    rows = read_rows(output)
    if not rows:
        raise ValueError(f"{output} has no rows.jsonl with rows: train something first")
    for ratio in {row["label_ratio"] for row in rows}:
        times = sorted({row["minutes"] for row in rows if row["label_ratio"] == ratio})
        if len(times) > 1:
            raise ValueError(f"{output} has rows of {times} minutes at the share {ratio:g}: keep them in two folders")
    figure = Figure(figsize=(6, 4), layout="constrained")
    plot = figure.add_subplot(xlabel="share of the labelled cases", ylabel="mean Dice", xscale="log")
    for number, arm in enumerate(arm for arm in ARMS if any(row["arm"] == arm for row in rows)):
        runs: dict[float, list[float]] = {}
        for row in rows:
            if row["arm"] == arm:
                runs.setdefault(row["label_ratio"] * 1.02**number, []).append(row["dice"])  # beside, not upon another
        ratios = sorted(runs)
        means = [statistics.mean(runs[ratio]) for ratio in ratios]
        spans = [[mean - min(runs[ratio]) for ratio, mean in zip(ratios, means, strict=True)]]
        spans.append([max(runs[ratio]) - mean for ratio, mean in zip(ratios, means, strict=True)])
        plot.errorbar(ratios, means, spans, marker="o", markersize=4, capsize=3, label=arm)
    shares = sorted({row["label_ratio"] for row in rows})
    plot.set_xticks(shares, [f"{share:g}" for share in shares])
    plot.minorticks_off()
    plot.grid(alpha=0.3)
    plot.legend(fontsize="small")
    save_figure(figure, picture)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("measure", "train", "table"):
        options = commands.add_parser(command)
        options.add_argument("--output", type=Path, required=True, help="folder of the runs and their rows")
        if command == "table":
            options.add_argument("--picture", type=Path, help="PNG of Dice over the share of labels")
            continue
        options.add_argument("arms", nargs="*", choices=[*ARMS, []], help="all, if none is named")
        options.add_argument("--dataset", required=True, help="folder of an MSD task")
        options.add_argument("--ids", type=json.loads, default={}, help='further ids of train.json, as {"id": value}')
    commands.choices["measure"].add_argument("--rounds", type=int, default=5)
    commands.choices["train"].add_argument("--minutes", type=float, required=True)
    commands.choices["train"].add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.command == "table":
        print_rows(given.output)
        if given.picture:
            draw_rows(given.output, given.picture)
    elif given.command == "measure":
        measure(given.arms or list(ARMS), given.dataset, given.output, given.rounds, given.ids)
    else:
        for seed in given.seeds:
            for name in given.arms or ARMS:
                train(name, given.dataset, given.output, given.minutes, seed, given.ids)


if __name__ == "__main__":
    main()
