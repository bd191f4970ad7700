"""The tables and figures of an experiment's page, from its plan and the results that are there."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from digar.volumes.pictures import save_figure
from matplotlib.figure import Figure

from benchmarks.experiments.protocol import Protocol
from benchmarks.experiments.scores import macro_auc, runs_of, tuned_rates
from benchmarks.experiments.statistics import compare, holm, patient_means

Results = dict[str, dict[str, Any]]
Table = dict[str, Any]
MEASURE = {"segmentation": "mean Dice", "classification": "accuracy", "features": "accuracy"}


def tables(protocol: Protocol, results: Results) -> dict[str, Table]:
    """All tables of the page by name; one without a row yet says so by having none."""
    writers: dict[str, Callable[[Protocol, Results], Table]] = {
        "plan": plan_table,
        "main": main_table,
        "scores": scores_table,
    }
    if len(protocol.rates) > 1:
        writers["rates"] = rates_table
    if protocol.pretraining:
        writers["pretraining"] = pretraining_table
    if protocol.twins:
        writers["twins"] = twins_table
    if protocol.task == "features":
        writers["layers"] = layers_table
    if protocol.identity_test:
        writers["identity"] = identity_table
    return {name: write(protocol, results) for name, write in writers.items()}


def overview(experiments: Sequence[tuple[Protocol, Results]]) -> Table:
    """All planned experiments: what each asks, what is expected, and how far it is."""
    rows = []
    for protocol, results in experiments:
        (done,) = [cell for name, cell in plan_table(protocol, results)["rows"] if name == "done"]
        rows.append([f"`{protocol.name}`", protocol.question, protocol.expected, done])
    return {"columns": ["experiment", "question", "expected", "done"], "rows": rows}


def plan_table(protocol: Protocol, results: Results) -> Table:
    """What was planned before the first run, how far it is, and the commits that ran."""
    done = {kind: sum(r["kind"] == kind for r in results.values()) for kind in ("pretraining", "tuning", "run")}
    planned = {kind: sum(j.kind == kind for j in protocol.jobs.values()) for kind in done}
    commits = sorted({result["commit"][:10] for result in results.values()})
    rows = [
        ["question", protocol.question],
        ["expected", protocol.expected],
        ["stop", protocol.stop],
        ["sizes", protocol.chosen],
        ["done", ", ".join(f"{done[kind]} of {planned[kind]} {kind}s" for kind in done if planned[kind])],
        ["code", ", ".join(f"`{commit}`" for commit in commits)],
    ]
    return {"columns": ["", "planned before the first run, and how far it is"], "rows": rows}


def labels_text(labels: int | None) -> str:
    """How many patients' labels are used."""
    return "all" if labels is None else str(labels)


def planned_runs(protocol: Protocol, arm: str, labels: int | None) -> int:
    """How many runs of an arm the plan has."""
    jobs = protocol.jobs.values()
    return sum(job.kind == "run" and job.arm == arm and job.labels == labels for job in jobs)


def main_table(protocol: Protocol, results: Results) -> Table:
    """The main comparisons; p corrected over all that were planned, those not run yet counted as p = 1."""
    found = [
        compare(runs_of(results, pair.arm, pair.labels), runs_of(results, pair.other, pair.labels))
        for pair in protocol.main
    ]
    corrected = holm([1.0 if difference is None else difference.p for difference in found])
    rows = []
    for pair, difference, p in zip(protocol.main, found, corrected, strict=True):
        start = [f"{pair.arm} - {pair.other}", labels_text(pair.labels)]
        planned = planned_runs(protocol, pair.arm, pair.labels)
        if difference is None:
            rows.append([*start, "not run", None, None, None, None, f"0 of {planned}", None])
            continue
        interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
        ps = [f"{difference.p:.2g}", f"{p:.2g}"]
        runs = f"{difference.runs} of {planned}"
        within = None
        if pair.margin is not None:
            within = f"{'yes' if difference.low > -pair.margin else 'not shown'}, {pair.margin:g}"
        rows.append([*start, f"{difference.mean:+.3f}", interval, *ps, difference.patients, runs, within])
    columns = [
        *("comparison", "labels", f"difference in {MEASURE[protocol.task]}", "95 % (patients)"),
        *("p", "p, Holm", "patients", "runs", "not worse by more than"),
    ]
    shown = len(columns) if any(pair.margin is not None for pair in protocol.main) else len(columns) - 1
    return {"columns": columns[:shown], "rows": [row[:shown] for row in rows]}


def arms_and_labels(protocol: Protocol) -> Iterator[tuple[str, int | None]]:
    """Every arm with every number of labelled patients that is planned, fewest first."""
    pairs = {(arm, stage.labels) for stage in protocol.runs for arm in stage.arms}
    order = list(protocol.arms)
    yield from sorted(pairs, key=lambda pair: (float("inf") if pair[1] is None else pair[1], order.index(pair[0])))


def scores_table(protocol: Protocol, results: Results) -> Table:
    """Every arm and number of labels that has a run: the mean over patients, and what runs differ by."""
    rows = []
    for arm, labels in arms_and_labels(protocol):
        runs = runs_of(results, arm, labels)
        if not runs:
            continue
        own = [r for r in results.values() if (r["kind"], r["arm"], r.get("labels")) == ("run", arm, labels)]
        per_patient = list(patient_means(runs).values())
        per_run = [np.mean(list(run.values())) for run in runs.values()]
        spread = f"{np.std(per_run, ddof=1):.3f}" if len(per_run) > 1 else None
        row = [labels_text(labels), arm, f"{np.mean(per_patient):.3f}", spread, f"{min(per_patient):.3f}"]
        if protocol.task != "segmentation":
            row[-1] = f"{np.mean([macro_auc(result['scores']) for result in own]):.3f}"
        else:
            row.append(" ".join(f"{dice:.3f}" for dice in label_means(own).values()))
        row.append(f"{len(runs)} of {planned_runs(protocol, arm, labels)}")
        if protocol.task != "features":
            seconds = max(result["seconds"] for result in own) / own[0]["steps"]  # a tuned run was timed in its tuning
            memory = max(result["peak_memory_mib"] for result in own)
            row += [
                f"{own[0]['rate']:g}",
                own[0]["steps"],
                f"{own[0]['parameters'] / 1e6:.2f}",
                f"{seconds:.2f}",
                memory,
            ]
        rows.append(row)
    inner = ["worst patient", "by label"] if protocol.task == "segmentation" else ["AUC"]
    columns = ["labels", "arm", MEASURE[protocol.task], "deviation over runs", *inner]
    trained = ["rate", "steps", "million weights", "core s per step", "peak MiB"] if protocol.task != "features" else []
    return {"columns": [*columns, "runs", *trained], "rows": rows}


def label_means(results: list[dict[str, Any]]) -> dict[str, float]:
    """The mean Dice of each label over cases and runs."""
    found: dict[str, list[float]] = {}
    for result in results:
        for row in result["scores"]:
            if row["dice"] is not None:
                found.setdefault(row["label"], []).append(row["dice"])
    return {label: float(np.mean(values)) for label, values in found.items()}


def rates_table(protocol: Protocol, results: Results) -> Table:
    """The score on the tuning patients at every rate."""
    rows = []
    for arm, plan in protocol.arms.items():
        scores = {} if plan.tuned_as else tuned_rates(protocol, arm, results)
        if scores:
            best = max(scores.values()) if len(scores) == len(protocol.rates) else None
            cells = [f"{scores[rate]:.3f}" if rate in scores else None for rate in protocol.rates]
            rows.append(
                [arm, *(f"**{cell}**" if cell and float(cell) == round(best or -1, 3) else cell for cell in cells)]
            )
    return {"columns": ["arm", *(f"rate {rate:g}" for rate in protocol.rates)], "rows": rows}


def pretraining_table(protocol: Protocol, results: Results) -> Table:
    """What each pretraining saw, what it took, and the held-out loss at its half and at its end."""
    rows = []
    for name in protocol.pretraining:
        result = next((r for r in results.values() if (r["kind"], r["arm"]) == ("pretraining", name)), None)
        if result is not None:
            losses = [loss for _, loss in result["val_loss"]]
            minutes = f"{result['seconds'] / 60:.0f}"
            ends = [f"{losses[len(losses) // 2 - 1]:.4f}", f"{min(losses):.4f}"]
            rows.append([name, result["volumes"], result["steps"], minutes, *ends])
    columns = ["pretraining", "volumes", "steps", "core minutes", "held-out loss at half", "at its best"]
    return {"columns": columns, "rows": rows}


def twins_table(protocol: Protocol, results: Results) -> Table:
    """The share of the twins' voxels that are given the twin's label: the mean over patients, and the worst."""
    rows = []
    for arm, labels in arms_and_labels(protocol):
        own = [r for r in results.values() if (r["kind"], r["arm"], r.get("labels")) == ("run", arm, labels)]
        shares = [
            row["twin_share"] for result in own for row in result["scores"]
        ]  # each case as often as it has labels
        if shares:
            rows.append([labels_text(labels), arm, f"{np.mean(shares):.2%}", f"{max(shares):.2%}", len(own)])
    return {"columns": ["labels", "arm", "voxels given the twin's label", "worst case", "runs"], "rows": rows}


def layers_table(protocol: Protocol, results: Results) -> Table:
    """The AUC of each layer's features, averaged over the runs, and which layers the tuning patients chose."""
    rows, layers = [], 0
    for arm, labels in arms_and_labels(protocol):
        own = [r for r in results.values() if (r["kind"], r["arm"], r.get("labels")) == ("run", arm, labels)]
        if own:
            aucs = np.mean([result["auc_by_layer"] for result in own], axis=0)
            layers = len(aucs)
            chosen = " ".join(str(result["layer"]) for result in own)
            rows.append([labels_text(labels), arm, *(f"{auc:.3f}" for auc in aucs), chosen])
    columns = ["labels", "arm", *(f"AUC, layer {number + 1}" for number in range(layers)), "chosen in tuning"]
    return {"columns": columns, "rows": rows}


def identity_table(protocol: Protocol, results: Results) -> Table:
    """What is lost where the trained transformer's blocks are replaced by the identity."""
    rows = []
    for arm, labels in arms_and_labels(protocol):
        whole, without = (runs_of(results, arm, labels, key) for key in ("scores", "scores_without_blocks"))
        difference = compare(without, whole)
        if difference:
            means = [f"{np.mean(list(patient_means(runs).values())):.3f}" for runs in (whole, without)]
            interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
            rows.append([labels_text(labels), arm, *means, f"{difference.mean:+.3f}", interval, difference.runs])
    columns = ["labels", "arm", "whole", "blocks as the identity", "difference", "95 % (patients)", "runs"]
    return {"columns": columns, "rows": rows}


def draw_figures(protocol: Protocol, results: Results, folder: Path) -> None:
    """Write the score over the number of labelled patients, and the losses of the pretrainings."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    plot = figure.add_subplot(xlabel="labelled patients", ylabel=MEASURE[protocol.task])
    numbers = sorted({stage.labels or 0 for stage in protocol.runs}, key=lambda n: n or float("inf"))
    for place, arm in enumerate(protocol.arms):
        points = [(numbers.index(n), runs_of(results, arm, n or None)) for n in numbers]
        points = [
            (x + 0.03 * place, [np.mean(list(run.values())) for run in runs.values()]) for x, runs in points if runs
        ]
        if points:
            means = [np.mean(values) for _, values in points]
            spans = np.array([[mean - min(v), max(v) - mean] for mean, (_, v) in zip(means, points, strict=True)]).T
            plot.errorbar([x for x, _ in points], means, spans, marker="o", markersize=4, capsize=3, label=arm)
    if plot.has_data():
        plot.set_xticks(range(len(numbers)), [str(n or "all") for n in numbers])
        plot.grid(alpha=0.3)
        plot.legend(fontsize="small", title="bars: lowest and highest run", title_fontsize="small")
        save_figure(figure, folder / f"{protocol.name}_scores.png")
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    plot = figure.add_subplot(xlabel="step", ylabel="held-out loss")
    for name, plan in protocol.pretraining.items():
        for result in results.values():
            if (result["kind"], result["arm"]) == ("pretraining", name):
                losses = [loss for _, loss in result["val_loss"]]
                steps = np.linspace(plan.steps / len(losses), plan.steps, len(losses))
                plot.plot(steps, losses, marker=".", label=name)
    if plot.has_data():
        plot.grid(alpha=0.3)
        plot.legend(fontsize="small")
        save_figure(figure, folder / f"{protocol.name}_pretraining.png")
