"""Tables of an evaluation, and pictures of its worst cases."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from scripts.data.datalists import case_name
from scripts.data.reading import read_volume
from scripts.metrics.segmentation import Score, score_case
from scripts.metrics.tables import case_means, summary_lines, write_scores
from scripts.report.pictures import Planes, picture_page, take_planes

logger = logging.getLogger(__name__)


def gather(items: list[Any]) -> list[Any]:
    """The items of all processes, one process after another."""
    return [item for part in idist.all_gather(items) for item in part] if idist.get_world_size() > 1 else items


class SegmentationScores:
    """Score every case of an evaluation; write ``cases.csv``, ``summary.csv`` and ``worst.png``.

    The evaluator must post-process ``pred`` and ``label`` to label maps ``(1, X, Y, Z)`` in the image's own grid. The
    mean Dice becomes the engine's metric ``mean_dice``.

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
        evaluator.add_event_handler(Events.COMPLETED, self.write)

    def start(self, evaluator: Engine) -> None:
        self.scores, self.worst = [], []

    def collect(self, evaluator: Engine) -> None:
        """Score the cases of a batch; keep planes of those that are among the worst so far."""
        for case in evaluator.state.output:
            path = case["image"].meta["filename_or_obj"]
            spacing = affine_to_spacing(case["label"].affine).tolist()
            truth, prediction = (np.asarray(case[key][0].cpu()).astype(np.uint8) for key in ("label", "pred"))
            scores = score_case(prediction, truth, spacing, self.tolerance_mm, case_name(path), self.labels)
            self.scores += scores
            (mean,) = case_means(scores)
            kept = [dice for dice, _ in self.worst]
            if not np.isnan(mean.dice) and (len(kept) < self.num_pictures or mean.dice < max(kept)):
                title = f"{mean.case}: mean Dice {mean.dice:.3f}"
                planes = take_planes(title, read_volume(path)[0].numpy(), [truth, prediction], spacing)
                self.worst = self._worst([*self.worst, (mean.dice, planes)])

    def _worst(self, rows: list[tuple[float, Planes]]) -> list[tuple[float, Planes]]:
        return sorted(rows, key=lambda row: row[0])[: self.num_pictures]

    def write(self, evaluator: Engine) -> None:
        """Merge what the processes scored; the first one writes.

        Raises:
            ValueError: there was nothing to score.
        """
        scores, worst = gather(self.scores), self._worst(gather(self.worst))
        means = [score.dice for score in case_means(scores) if not np.isnan(score.dice)]
        if not means:
            raise ValueError("there is nothing to score: no case holds a label, in the truth or in the prediction")
        evaluator.state.metrics["mean_dice"] = float(np.mean(means))
        if idist.get_rank() == 0:
            summary = write_scores(self.folder, scores)
            picture_page(self.folder / "worst.png", [planes for _, planes in worst], "truth solid, prediction dashed")
            logger.info("scores of %d cases in %s\n%s", len(means), self.folder, "\n".join(summary_lines(summary)))
