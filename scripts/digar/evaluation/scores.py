"""Tables of an evaluation, and pictures of its worst cases."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from digar.evaluation.classification import (
    Classified,
    confusion_matrix,
    probabilities_and_classes,
    summarise_classes,
)
from digar.evaluation.segmentation import Score, score_case
from digar.evaluation.tables import case_means, summary_lines, write_scores, write_table
from digar.volumes.pictures import Planes, picture_page, take_planes
from digar.volumes.reading import read_volume

logger = logging.getLogger(__name__)


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes, one process after another."""
    return [item for part in idist.all_gather(items) for item in part] if idist.get_world_size() > 1 else items


def worst_rows(rows: list[tuple[float, Planes]], count: int) -> list[tuple[float, Planes]]:
    """The rows of the lowest scores, lowest first."""
    return sorted(rows, key=lambda row: row[0])[:count]


class SegmentationScores:
    """Score every case of an evaluation; write ``cases.csv``, ``summary.csv`` and ``worst.png``.

    The evaluator must post-process ``pred`` and ``label`` to label maps ``(1, X, Y, Z)`` in the image's own grid; its
    cases have a ``name``. The mean Dice becomes the engine's metric ``mean_dice``.

    Args:
        folder: where the files go.
        labels: names of the labels 1, 2, ...
        tolerance_mm: of the surface Dice.
        num_pictures: rows of the page of the worst cases.
    """

    def __init__(self, folder: str | Path, labels: Sequence[str], tolerance_mm: float, num_pictures: int) -> None:
        self.folder = Path(folder)
        self.labels = list(labels)
        self.tolerance_mm = tolerance_mm
        self.num_pictures = num_pictures
        self.scores: list[Score] = []
        self.worst: list[tuple[float, Planes]] = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, self.start)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, evaluator: Engine) -> None:
        self.scores, self.worst = [], []

    def collect(self, evaluator: Engine) -> None:
        """Score the cases of a batch; keep planes of those that are among the worst so far."""
        for source, case in zip(evaluator.state.batch, evaluator.state.output, strict=True):
            path = case["image"].meta["filename_or_obj"]
            spacing = affine_to_spacing(case["label"].affine).tolist()
            truth, prediction = (case[key][0].cpu().numpy() for key in ("label", "pred"))
            scores = score_case(prediction, truth, spacing, self.tolerance_mm, source["name"], self.labels)
            self.scores += scores
            (mean,) = case_means(scores)
            dice, kept = mean["dice"], [other for other, _ in self.worst]
            if not np.isnan(dice) and (len(kept) < self.num_pictures or dice < max(kept, default=-np.inf)):
                title = f"{mean.case}: mean Dice {dice:.3f}"
                volume = read_volume(path)
                planes = take_planes(title, volume[0].numpy(), [truth, prediction], volume.affine.numpy())
                self.worst = worst_rows([*self.worst, (dice, planes)], self.num_pictures)

    def write(self, evaluator: Engine) -> None:
        """Merge what the processes scored; the first one writes.

        Raises:
            ValueError: there was nothing to score.
        """
        scores = gather(self.scores)
        worst = worst_rows(gather(self.worst), self.num_pictures)
        means = [score["dice"] for score in case_means(scores) if not np.isnan(score["dice"])]
        if not means:
            raise ValueError("there is nothing to score: no case holds a label, in the truth or in the prediction")
        evaluator.state.metrics["mean_dice"] = float(np.mean(means))
        if idist.get_rank() == 0:
            summary = write_scores(self.folder, scores)
            if worst:
                names = dict(enumerate(self.labels, start=1))
                picture_page(self.folder / "worst.png", [planes for _, planes in worst], "the lowest Dice", names)
            logger.info("scores of %d cases in %s\n%s", len(means), self.folder, "\n".join(summary_lines(summary)))


class ClassificationScores:
    """Score every case of an evaluation; write ``cases.csv``, ``summary.csv``, ``confusion.csv`` and ``worst.png``.

    ``cases.csv`` has the probability of every class; the pictures show the cases whose true class got the least.

    Args:
        folder: where the files go.
        classes: names of the classes.
        num_pictures: rows of the page.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str], num_pictures: int) -> None:
        self.folder = Path(folder)
        self.classes = list(classes)
        self.num_pictures = num_pictures
        self.cases: list[Classified] = []
        self.worst: list[tuple[float, Planes]] = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, self.start)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, evaluator: Engine) -> None:
        self.cases, self.worst = [], []

    def collect(self, evaluator: Engine) -> None:
        """Keep the probabilities of a batch, and planes of the cases that are among the worst so far."""
        probabilities, _ = probabilities_and_classes(evaluator.state.output)
        batch = evaluator.state.batch
        for index, (name, label) in enumerate(zip(batch["name"], batch["label"].tolist(), strict=True)):
            case = Classified(name, label, probabilities[index].tolist())
            self.cases.append(case)
            share = case.probabilities[label]
            if len(self.worst) < self.num_pictures or share < max((kept for kept, _ in self.worst), default=-np.inf):
                title = f"{name}: {self.classes[label]}, with probability {share:.3f}"
                planes = take_planes(title, batch["image"][index, 0].cpu().numpy(), [])
                self.worst = worst_rows([*self.worst, (share, planes)], self.num_pictures)

    def write(self, evaluator: Engine) -> None:
        """Merge what the processes scored; the first one writes.

        Raises:
            ValueError: there was nothing to score.
        """
        cases = gather(self.cases)
        if not cases:
            raise ValueError("there is nothing to score: this part contains no case, pass another --part")
        worst = worst_rows(gather(self.worst), self.num_pictures)
        if idist.get_rank() > 0:
            return
        summary = summarise_classes(cases, self.classes)
        matrix = confusion_matrix(cases, len(self.classes))
        columns = ["case", "class", "predicted", *(f"probability {name}" for name in self.classes)]
        rows = [
            [c.name, self.classes[c.label], self.classes[int(np.argmax(c.probabilities))], *c.probabilities]
            for c in cases
        ]
        write_table(self.folder / "cases.csv", columns, (dict(zip(columns, row, strict=True)) for row in sorted(rows)))
        write_table(self.folder / "summary.csv", list(summary[0]), summary)
        columns = ["true class", *(f"predicted {name}" for name in self.classes)]
        counts = [[name, *matrix[index].tolist()] for index, name in enumerate(self.classes)]
        write_table(self.folder / "confusion.csv", columns, (dict(zip(columns, row, strict=True)) for row in counts))
        if worst:
            picture_page(
                self.folder / "worst.png", [planes for _, planes in worst], "least probability for the true class"
            )
        lines = [f"{row['class']:<20} AUC {row['auc']:.3f}, recall {row['recall']:.3f}" for row in summary]
        accuracy = f"accuracy {summary[-1]['accuracy']:.3f}"
        logger.info("scores of %d cases in %s\n%s\n%s", len(cases), self.folder, "\n".join(lines), accuracy)
