"""Scores of an evaluation: tables of every case and a page of the worst, whatever comes first."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.evaluation import scores
from digar.evaluation.scores import SegmentationScores
from ignite.engine import Engine
from monai.data import MetaTensor

SPACING = (1.0, 2.0, 3.0)


def make_case(folder: Path, name: str, overlap: int, label_voxels: int = 10) -> dict:
    """A post-processed case whose prediction shares ``overlap`` of 10 labelled voxels."""
    affine = np.diag([*SPACING, 1.0])
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(1000, dtype=np.float32).reshape(10, 10, 10), affine), path)
    label, prediction = torch.zeros(1, 10, 10, 10), torch.zeros(1, 10, 10, 10)
    label[0, 0, 0, :label_voxels] = 1
    prediction[0, 0, 0, :overlap] = 1
    prediction[0, 5, 5, overlap:label_voxels] = 1
    return {
        "image": MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": str(path)}),
        "label": MetaTensor(label, affine=torch.from_numpy(affine)),
        "pred": prediction,
        "name": name,
    }


def evaluate(handler: SegmentationScores, batches: list[list[dict]]) -> Engine:
    evaluator = Engine(lambda engine, batch: batch)
    handler.attach(evaluator)
    evaluator.run(batches)
    return evaluator


def test_every_case_is_scored_in_mm_and_the_metric_is_the_mean(tmp_path):
    batches = [[make_case(tmp_path, "a", 10)], [make_case(tmp_path, "b", 5)]]
    evaluator = evaluate(SegmentationScores(tmp_path / "out", ["organ"], 1.0, 4), batches)
    assert evaluator.state.metrics["mean_dice"] == pytest.approx(0.75)
    with (tmp_path / "out/cases.csv").open(newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream) if row["label"] == "organ"}
    assert float(rows["b"]["dice"]) == 0.5
    assert float(rows["a"]["true_volume_ml"]) == pytest.approx(10 * 6 / 1000)
    assert (tmp_path / "out/worst.png").is_file()


def test_the_page_shows_the_worst_cases_in_their_own_grid_worst_first(monkeypatch, tmp_path):
    pages = []
    monkeypatch.setattr(scores, "picture_page", lambda path, rows, title, labels: pages.append(rows))
    batches = [[make_case(tmp_path, name, n)] for name, n in zip("abcde", (9, 2, 7, 10, 4), strict=True)]
    evaluate(SegmentationScores(tmp_path, ["organ"], 1.0, 3), batches)
    ((first, second, third),) = pages
    titles = [row.title for row in (first, second, third)]
    assert titles == ["b: mean Dice 0.200", "e: mean Dice 0.400", "c: mean Dice 0.700"]
    assert first.images[0].shape == (10, 10)
    assert first.spacing == SPACING


def test_cases_without_any_label_are_left_out_of_the_mean(tmp_path):
    batches = [[make_case(tmp_path, "a", 10)], [make_case(tmp_path, "none", 0, label_voxels=0)]]
    evaluator = evaluate(SegmentationScores(tmp_path, ["organ"], 1.0, 4), batches)
    assert evaluator.state.metrics["mean_dice"] == 1.0


def test_an_evaluation_without_anything_labelled_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to score"):
        evaluate(SegmentationScores(tmp_path, ["organ"], 1.0, 4), [[make_case(tmp_path, "none", 0, label_voxels=0)]])
