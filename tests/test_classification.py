"""Classification as users start it: tables and archives, from scratch and pretrained, evaluated per case."""

import csv
import json
from pathlib import Path

import pytest
import torch
from digar.networks import PretrainingNetwork
from ignite.engine import Events

from tests.helixes import CLASSES, write_archive, write_table
from tests.test_workflows import root_cause, run, workflow

NETWORK = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
SMALL = {
    "classes": list(CLASSES), "roi_size": [16, 16, 16], "network_size": NETWORK, "num_workers": 0, "max_epochs": 2,
    "validation_share": 0.3,
}  # fmt: skip
CONFIGS = ["train.json", "classify.json"]


def overlay(folder: Path, **settings: object) -> str:
    file = folder / "small.json"
    file.write_text(json.dumps(SMALL | settings))
    return str(file)


def options(data: Path, folder: Path) -> dict[str, str]:
    return {"dataset_dir": str(data), "output_dir": str(folder / "out"), "weights_file": str(folder / "model.pt")}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_table_is_learned_and_every_case_evaluated_with_its_probabilities(tmp_path):
    table = write_table(tmp_path / "data", 12)
    small = overlay(tmp_path)
    flow = run(CONFIGS, small, "training", "training", **options(table, tmp_path))
    assert flow.check_properties() == []
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == set(flow.network_def.state_dict())
    files = [*CONFIGS, "evaluate_classes.json"]
    flow = run(files, small, "evaluation", **options(table, tmp_path))
    assert flow.check_properties() == []
    rows = read(tmp_path / "out/cases.csv")
    assert sorted(row["class"] for row in rows) == ["left", "left", "right", "right"]
    for row in rows:
        shares = [float(row[f"probability {name}"]) for name in CLASSES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == CLASSES[shares.index(max(shares))]
    summary = read(tmp_path / "out/summary.csv")
    assert [row["class"] for row in summary] == ["left", "right", "all"]
    for key in ("auc", "accuracy"):  # ours and ignite's
        assert float(summary[-1][key]) == pytest.approx(flow.evaluator.state.metrics[key], abs=1e-5)
    counts = [[int(n) for n in list(row.values())[1:]] for row in read(tmp_path / "out/confusion.csv")]
    assert [sum(row) for row in counts] == [2, 2]
    assert (tmp_path / "out/worst.png").is_file()


def test_an_archive_is_learned_from_pretrained_weights_and_its_test_part_evaluated(tmp_path):
    archive = write_archive(tmp_path / "a.npz", (6, 4, 4), size=12)
    pretrained = PretrainingNetwork(16, 8, size=NETWORK, attention="full+sequence")
    torch.save(pretrained.state_dict(), tmp_path / "pretrained.pt")
    small = overlay(tmp_path, max_epochs=1)
    start = workflow(
        CONFIGS, small, "training", "training", pretrained=str(tmp_path / "pretrained.pt"), **options(archive, tmp_path)
    )
    start.initialize()
    weight = start.network_def.backbone.blocks[1].mlp[0].weight.detach().cpu().clone()
    torch.testing.assert_close(weight, pretrained.backbone.blocks[1].mlp[0].weight)
    start.run()
    start.finalize()
    run([*CONFIGS, "evaluate_classes.json"], small, "evaluation", part="test", **options(archive, tmp_path))
    assert [row["case"] for row in read(tmp_path / "out/cases.csv")] == [f"test_000{n}" for n in range(4)]


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    archive = write_archive(tmp_path / "a.npz", (4, 4, 2), size=8)
    small = overlay(tmp_path, max_epochs=30, patience=2, learning_rate=0.0)
    flow = run(CONFIGS, small, "training", "training", **options(archive, tmp_path))
    assert flow.trainer.state.epoch == 3  # the first sets the mark, two bring nothing


def test_a_resumed_training_counts_on_from_the_epochs_without_improvement(tmp_path):
    archive = write_archive(tmp_path / "a.npz", (4, 4, 2), size=8)
    ends = []
    for epochs, resume in ((2, False), (30, True)):
        small = overlay(tmp_path, max_epochs=30, patience=2, learning_rate=0.0, resume=resume)
        flow = workflow(CONFIGS, small, "training", "training", **options(archive, tmp_path))
        flow.initialize()
        flow.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), lambda engine: engine.terminate())
        flow.run()
        ends.append(flow.trainer.state.epoch)
    assert ends == [2, 3]


def test_a_class_without_a_volume_is_refused_before_training(tmp_path):
    table = write_table(tmp_path / "data", 12, size=4)
    with pytest.raises(RuntimeError) as caught:
        run(CONFIGS, overlay(tmp_path, classes=["left", "right", "none"]), "training", **options(table, tmp_path))
    assert "contain no volume of class none" in str(root_cause(caught.value))
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_the_way_a_helix_winds_is_learned(tmp_path):
    archive = write_archive(tmp_path / "a.npz", (80, 20, 40), size=16)
    small = overlay(tmp_path, max_epochs=30, learning_rate=0.002, val_interval=5)
    run(CONFIGS, small, "training", "training", **options(archive, tmp_path))
    run([*CONFIGS, "evaluate_classes.json"], small, "evaluation", part="test", **options(archive, tmp_path))
    summary = read(tmp_path / "out/summary.csv")[-1]
    assert float(summary["auc"]) > 0.95
    assert float(summary["accuracy"]) > 0.7  # the weights of the best AUC need not be the most accurate ones
