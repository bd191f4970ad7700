"""One job of an experiment: the bundle's own configs with a few ids replaced, and the result as plain numbers."""

import csv
import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from digar.data.classified import classified_cases
from digar.data.datalists import scans
from digar.networks import ClassificationNetwork
from digar.networks.weights import load_pretrained
from digar.volumes.files import whole_file
from digar.volumes.search import case_name
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from benchmarks.experiments.features import features, probe
from benchmarks.experiments.patients import Case, Parts, draw_labelled, read_cases, split_patients
from benchmarks.experiments.protocol import Job, Protocol, slug
from benchmarks.experiments.scheduler import result_file
from benchmarks.experiments.scores import best_rate, macro_auc
from benchmarks.measure import default_device, held_memory, machine_facts

ROOT = Path(__file__).resolve().parents[2]
CURVE_POINTS = 40
PRETRAINING_FACTS = ("settings", "steps", "volumes", "seconds", "train_loss", "val_loss")
PROBED = ("patch_size", "attention", "in_channels", "num_classes")  # what decides a frozen backbone
KEPT_FIELDS = ("dice", "hd95_mm", "volume_ml", "true_volume_ml")  # of the evaluation's cases.csv


def take_blocks_out(network: nn.Module) -> None:
    """Let every transformer block hand its tokens on as they are."""
    for block in network.backbone.blocks:
        block.forward = lambda tokens, biases: tokens


class TwinShare:
    """How often twins are taken for each other: of the voxels of labels that have a twin, the share given its label.

    Args:
        pairs: label values.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.twin = np.full(256, -1)
        for one, other in pairs:
            self.twin[[one, other]] = other, one
        self.shares: dict[str, float] = {}

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, evaluator: Engine) -> None:
        """Keep the share of every case of a batch."""
        for case in evaluator.state.output:
            truth, prediction = (case[key][0].cpu().numpy().astype(int) for key in ("label", "pred"))
            name = case_name(case["image"].meta["filename_or_obj"])
            self.shares[name] = round(self.share(truth, prediction), 5)

    def share(self, truth: np.ndarray, prediction: np.ndarray) -> float:
        """The share in one label map; NaN where no label with a twin occurs."""
        twin = self.twin[truth]
        return float((prediction == twin)[twin >= 0].mean()) if (twin >= 0).any() else math.nan


def build(files: Sequence[str], ids: Mapping[str, Any]) -> ConfigWorkflow:
    """The bundle's config files with ids replaced, initialised."""
    flow = ConfigWorkflow(
        config_file=[str(ROOT / file) for file in files],
        logging_file=str(ROOT / "configs/logging.conf"),
        meta_file=str(ROOT / "configs/metadata.json"),
        workflow_type="training",
        bundle_root=str(ROOT),
        **ids,
    )
    flow.initialize()
    return flow


def training_ids(
    protocol: Protocol, job: Job, cases: Sequence[Case], parts: Parts, state: Path, data: Path
) -> dict[str, Any]:
    """The ids of a training: the experiment's, the arm's, its labelled patients, its rate and its seed.

    Raises:
        FileNotFoundError: the results of the arm's tuning, or its pretrained weights, are not there.
    """
    arm = protocol.arms[job.arm]
    rate = job.rate if job.rate is not None else best_rate(protocol, job.arm, state)
    steps = arm.steps or protocol.steps
    classified = protocol.task == "classification"
    ids = {
        "num_workers": 0,
        **protocol.ids,
        **arm.ids,
        "dataset_dir": str(data / protocol.data / (protocol.table or "") if classified else data / protocol.data),
        "learning_rate": rate,
        "seed": 100 * job.draw + job.seed,
        "max_epochs": f"$-(-{steps} // len(@train#dataloader))",
        "keep_states": 1,
        "resume": "auto",
    }
    if arm.pretrained:
        ids["pretrained"] = str(state / Job("pretraining", arm.pretrained).name / "pretrained.pt")
    labelled = draw_labelled(cases, protocol.split, job.labels, job.draw)
    if not classified:
        chosen = {"train#dataset#data": files_of(cases, labelled), "validate#dataset#data": []}
        return ids | chosen  # never validated: the last weights are scored
    named = {"_target_": "benchmarks.experiments.workflows.named", "cases": "$@cases()['all']"}
    return ids | {
        "train#dataset#data": {**named, "names": [c.name for c in cases if c.patient in set(labelled)]},
        "validate#dataset#data": {**named, "names": [c.name for c in cases if c.patient in set(parts.tune)]},
    }


def files_of(cases: Sequence[Case], patients: Sequence[str]) -> list[dict[str, Any]]:
    """The files of some patients' cases, as the configs' datasets take them."""
    return [case.files for case in cases if case.patient in set(patients)]


def named(cases: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The cases of these names; for configs."""
    wanted = set(names)
    return [case for case in cases if case["name"] in wanted]


def pretrain(protocol: Protocol, job: Job, cases: Sequence[Case], state: Path, data: Path) -> dict[str, Any]:
    """Pretrain on the patients that no run scores; the loss is told on the tuning patients."""
    plan = protocol.pretraining[job.arm]
    folder = state / job.name
    if plan.of:
        return take_over(state.parent / plan.of, job, folder)
    parts = split_patients(cases, protocol.split)
    if plan.data:
        found = scans(data / plan.data)
        held_out = found[:: max(len(found) // 5, 1)]
        learn = [case for case in found if case not in held_out]
    else:
        learn, held_out = (files_of(cases, patients) for patients in (parts.learn, parts.tune))
    listed = {
        part: [{"kind": "spatial", "image": case["image"]} for case in chosen]
        for part, chosen in (("training", learn), ("validation", held_out))
    }
    ids = {
        **plan.ids,
        "dataset_dir": str(data / (plan.data or protocol.data)),
        "output_dir": str(folder),
        "weights_file": str(folder / "pretrained.pt"),
        "cache_dir": str(state / "cache"),
        "num_workers": 0,
        "cases": {**listed, "all": listed["training"] + listed["validation"]},
        "max_epochs": f"$-(-{plan.steps} // len(@train#dataloader))",
        "keep_states": 1,
        "resume": "auto",
    }
    start = time.process_time()
    flow = build(plan.config, ids)
    flow.run()
    flow.finalize()
    return {
        "settings": plan.ids,
        "steps": plan.steps,
        "volumes": len(learn),
        "seconds": round(time.process_time() - start),
        "train_loss": curve(folder / "tensorboard", "train_loss"),
        "val_loss": curve(folder / "tensorboard", "val_loss"),
    }


def probe_features(protocol: Protocol, job: Job, cases: Sequence[Case], state: Path, data: Path) -> dict[str, Any]:
    """Classify by frozen features, a layer at a time; the layer is chosen on the tuning patients, all are told."""
    arm = protocol.arms[job.arm]
    ids = {**protocol.ids, **arm.ids}
    parts = split_patients(cases, protocol.split, job.draw)
    learned = draw_labelled(cases, protocol.split, job.labels, job.draw)
    torch.manual_seed(job.seed)
    network = ClassificationNetwork(
        **{name: ids[name] for name in PROBED}, image_size=ids["roi_size"], size=ids["network_size"]
    )
    weights = state / Job("pretraining", arm.pretrained).name / "pretrained.pt" if arm.pretrained else None
    load_pretrained(network, weights)
    cache = state / "features" / f"{slug(job.arm)}_seed{job.seed}.npy"
    images = [case.files["image"] for case in cases]
    found = features(network.backbone, images, ids["spacing"], cache, protocol.normalise_tokens)
    groups = sorted({case.group for case in cases})
    classes = [groups.index(case.group) for case in cases]
    learn, tune, scored = (
        [number for number, case in enumerate(cases) if case.patient in set(chosen)]
        for chosen in (learned, parts.tune, parts.score)
    )
    layers = [probe(found[:, layer], classes, learn, tune, len(groups)) for layer in range(found.shape[1])]
    rows = [
        [
            {"patient": cases[i].patient, "case": cases[i].name, "class": cases[i].group}
            | {name: round(float(p), 4) for name, p in zip(groups, probabilities[i], strict=True)}
            for i in scored
        ]
        for probabilities, _ in layers
    ]
    losses = [loss for _, loss in layers]
    best = int(np.argmin(losses))
    return {
        "settings": ids,
        "pretrained": arm.pretrained,
        "learned_from": len(learned),
        "tuning_log_loss": [round(loss, 4) for loss in losses],
        "layer": best + 1,
        "auc_by_layer": [round(macro_auc(own), 4) for own in rows],
        "scores": rows[best],
    }


def unpack(protocol: Protocol, cases: Sequence[Case], state: Path, data: Path) -> list[Case]:
    """The volumes of an archive as files of 1 mm voxels, which pretraining and features read."""
    found = classified_cases(data / protocol.data, protocol.ids["classes"], 0.0, 0)
    volumes = {case["name"]: case["image"] for case in found}
    for name, voxels in volumes.items():
        file = state / "volumes" / f"{name}.nii.gz"
        if not file.is_file():
            with whole_file(file) as temporary:
                nib.save(nib.Nifti1Image(np.asarray(voxels, np.uint8), np.eye(4)), temporary)
    return [replace(c, files={"image": str(state / "volumes" / f"{c.name}.nii.gz")}) for c in cases]


def take_over(source: Path, job: Job, folder: Path) -> dict[str, Any]:
    """The pretraining of another experiment: its weights and what was told of it.

    Raises:
        FileNotFoundError: it is not finished.
    """
    result = result_file(source, job.name)
    if not result.is_file():
        raise FileNotFoundError(f"{job.name} of {source.name} is not finished: run that experiment first")
    shutil.copytree(source / job.name, folder, dirs_exist_ok=True, ignore=lambda path, found: {"lock", "log.txt"})
    told = json.loads(result.read_text(encoding="utf-8"))
    return {"taken_from": source.name} | {key: value for key, value in told.items() if key in PRETRAINING_FACTS}


def train_and_score(protocol: Protocol, job: Job, cases: Sequence[Case], state: Path, data: Path) -> dict[str, Any]:
    """Train an arm; score the tuning patients (a tuning), or those that are kept for the scores (a run)."""
    parts = split_patients(cases, protocol.split, job.draw)
    ids = training_ids(protocol, job, cases, parts, state, data)
    training = Job("training", job.arm, job.labels, job.draw, job.seed, ids["learning_rate"])
    folder = state / training.name  # a tuning's, which a run with the same draw, seed and rate finds complete
    ids |= {"output_dir": str(folder), "weights_file": str(folder / "model.pt")}
    start = time.process_time()
    flow = build(protocol.config, ids)
    flow.run()
    network = flow.parser.get_parsed_content("network_def")
    flow.finalize()
    seconds, memory = time.process_time() - start, held_memory("cpu")
    scored = parts.tune if job.kind == "tuning" else parts.score
    chosen = [case for case in cases if case.patient in set(scored)]
    result = {
        "settings": {**protocol.ids, **protocol.arms[job.arm].ids},
        "rate": ids["learning_rate"],
        "pretrained": protocol.arms[job.arm].pretrained,
        "steps": protocol.arms[job.arm].steps or protocol.steps,
        "parameters": sum(p.numel() for p in network.parameters()),
        "learned_from": draw_labelled(cases, protocol.split, job.labels, job.draw),
        "seconds": round(seconds),
        "peak_memory_mib": round(memory),
        "train_loss": curve(folder / "tensorboard", "train_loss"),
        "scores": score(protocol, ids, chosen, folder / job.kind),
    }
    if protocol.identity_test and job.kind == "run" and len(network.backbone.blocks):
        result["scores_without_blocks"] = score(protocol, ids, chosen, folder / "identity", without_blocks=True)
    return result


def score(
    protocol: Protocol, ids: Mapping[str, Any], cases: Sequence[Case], folder: Path, without_blocks: bool = False
) -> list[dict[str, Any]]:
    """Score a trained network by the bundle's own evaluation; a row per case and label, or per case."""
    chosen: Any = [case.files for case in cases]
    if protocol.task == "classification":
        chosen = {
            "_target_": "benchmarks.experiments.workflows.named",
            "cases": "$@cases()['all']",
            "names": [case.name for case in cases],
        }
    replaced = {**ids, "output_dir": str(folder), "worst_pictures": 0, "evaluated_cases": chosen}
    flow = build([*protocol.config, *protocol.evaluate], replaced)
    if without_blocks:
        take_blocks_out(flow.parser.get_parsed_content("network_def"))
    twins = TwinShare(protocol.twins)
    if protocol.twins:
        twins.attach(flow.parser.get_parsed_content("evaluator"))
    flow.run()
    flow.finalize()
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    patients = {case.name: case.patient for case in cases}
    scored = [{"patient": patients[row["case"]], **_numbers(row)} for row in rows if row.get("label") != "mean"]
    return [row | {"twin_share": twins.shares[row["case"]]} for row in scored] if protocol.twins else scored


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """A row of ``cases.csv`` as numbers: an empty field is None, and not in the result where nothing reads it."""
    kept: dict[str, Any] = {key: row[key] for key in ("case", "label", "class") if key in row}
    for key, value in row.items():
        if key in KEPT_FIELDS or key.startswith("probability "):
            kept[key.removeprefix("probability ")] = round(float(value), 4) if value else None
    return kept


def curve(folder: Path, tag: str) -> list[list[float]]:
    """A loss that a training wrote for TensorBoard: step and mean loss, in about ``CURVE_POINTS`` parts."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    if tag not in tags:
        return []
    events = {event.step: event.value for event in accumulator.Scalars(tag)}  # a resumed run may write a step twice
    steps = np.array(sorted(events))
    groups = np.array_split(steps, min(CURVE_POINTS, len(steps)))
    means = [(int(group[-1]), float(np.mean([events[step] for step in group]))) for group in groups]
    return [[step, round(loss, 5)] for step, loss in means if math.isfinite(loss)]


WORK = {"segmentation": train_and_score, "classification": train_and_score, "features": probe_features}


def execute(protocol: Protocol, job: Job, state: Path, data: Path) -> dict[str, Any]:
    """Do a job and tell its result, with everything that a reader needs to judge or to repeat it."""
    torch.set_num_threads(1)
    cases = read_cases(protocol, data)
    if protocol.split.given:
        cases = unpack(protocol, cases, state, data)
    work = pretrain if job.kind == "pretraining" else WORK[protocol.task]
    result = work(protocol, job, cases, state, data)
    facts = machine_facts(default_device())
    described = {"experiment": protocol.name, "job": job.name, "kind": job.kind, "arm": job.arm}
    if job.kind != "pretraining":
        described |= {"labels": job.labels, "draw": job.draw, "seed": job.seed}
    machine = {key: facts[key] for key in ("device", "cpu", "cpu_bf16", "threads", "python", "torch", "monai")}
    return {**described, "commit": commit(), "machine": machine, **result}


def commit() -> str:
    """The commit of the code that runs, with a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
