"""The curves of one or several runs as a picture: training loss by step, validation by epoch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from digar.volumes.pictures import save_figure

SMOOTHING = 20  # iterations that a point of the loss curve averages


def read_curves(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All scalar curves of a run's ``tensorboard`` folder: name to (steps, values).

    Raises:
        FileNotFoundError: the run has no curves.
    """
    folder = run / "tensorboard"
    if not list(folder.glob("events*")):
        raise FileNotFoundError(f"{run} has no curves: {folder} contains no TensorBoard events")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        curves[name] = (np.array([p.step for p in points]), np.array([p.value for p in points]))
    return curves


def draw_curves(runs: Sequence[Path], picture: Path) -> None:
    """Write a PNG with the smoothed training loss on the left and the validation metric by epoch on the right."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        curves = read_curves(run)
        steps, loss = curves["train_loss"]
        width = min(SMOOTHING, len(loss))
        left.plot(steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), label=run.name)
        for name in ("val_mean_dice", "val_loss"):
            if name in curves:
                right.plot(*curves[name], marker="o", label=f"{run.name}: {name}")
    left.set(title="training loss", xlabel="iteration", yscale="log")
    right.set(title="validation", xlabel="epoch")
    for axes in (left, right):
        if axes.lines:  # a run without validation has no curve on the right
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    save_figure(figure, picture)
