"""Experiments run the bundle's configs: from the plan to committed numbers, on phantoms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from digar.networks import SegmentationNetwork

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import networks, protocol, scores, workflows
from tests import conftest

SIZES = {key: conftest.SMALL[key] for key in ("num_classes", "spacing", "roi_size", "patch_size", "network_size")}
PLAN = {
    "title": "Phantoms", "question": "Does it run?", "expected": "Yes.", "stop": "At once.", "chosen": "Tiny.",
    "task": "segmentation", "data": "task", "split": {"seed": 0, "score": 1, "tune": 1},
    "config": ["configs/train.json"], "evaluate": ["configs/evaluate.json"],
    "ids": {**SIZES, "attention": "none", "feature_size": 4, "batch_size": 2}, "steps": 2,
    "rates": [1.0e-3, 1.0e-2], "tuned_with": 2, "identity_test": True, "twins": [[5, 6]],
    "pretraining": {
        "next": {
            "config": ["configs/pretrain.yaml"], "steps": 2,
            "ids": {
                "spacing": SIZES["spacing"], "sample_size": SIZES["roi_size"], "patch_size": 4, "attention": "none",
                "network_size": SIZES["network_size"], "batch_size": 2, "samples_per_epoch": 2,
            },
        }
    },
    "arms": {
        "scratch": {"ids": {"head": "light"}},
        "next": {"ids": {"head": "light"}, "pretrained": "next", "tuned_as": "scratch"},
        "peer": {
            "ids": {
                "network_def": {
                    "_target_": "benchmarks.experiments.networks.Peer",
                    "network": {
                        "_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": "@num_classes",
                        "kernel_size": 3, "padding": 1,
                    },
                }
            },
            "tuned_as": "scratch",
        },
    },
    "runs": [{"labels": 2, "arms": ["scratch", "next", "peer"]}],
    "main": [{"arm": "next", "other": "scratch", "labels": 2}],
}  # fmt: skip


def work_through(folder: Path, data: Path) -> dict[str, dict]:
    """Do the jobs of ``plan.yaml`` in their order: the results."""
    options = ["--protocols", str(folder), "--data", str(data), "--state", str(folder / "state")]
    for job in protocol.read_protocol("plan", folder).jobs:
        assert command.main(["job", "plan", job, *options]) == 0
    return scores.read_results(folder / "state/plan/results")


@pytest.mark.slow
def test_every_job_of_a_plan_has_its_result_with_scores_and_settings(task, tmp_path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    results = work_through(tmp_path, task.parent)
    plan = protocol.read_protocol("plan", tmp_path)
    assert set(results) == set(plan.jobs)
    (pretraining,) = (result for result in results.values() if result["kind"] == "pretraining")
    assert pretraining["volumes"] == 3
    assert [step for step, _ in pretraining["train_loss"]] == [1, 2]
    assert len(pretraining["val_loss"]) == 2
    best = scores.best_rate(plan, "scratch", tmp_path / "state/plan")
    for result in results.values():
        assert str(tmp_path) not in json.dumps(result), "a path of this machine"
        assert str(task) not in json.dumps(result), "a path of this machine"
        if result["kind"] == "run":
            assert len(result["learned_from"]) == 2
            assert not {row["patient"] for row in result["scores"]} & set(result["learned_from"])
            assert result["rate"] == best
            assert all(0 <= row["twin_share"] <= 1 for row in result["scores"])
            assert {row["label"] for row in result["scores"]} >= {"ellipsoid", "landmark"}
            assert ("scores_without_blocks" in result) == (result["arm"] != "peer")


def test_a_network_without_blocks_sees_no_neighbour_beyond_its_head() -> None:
    network = SegmentationNetwork(8, 4, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2})
    workflows.take_blocks_out(network)
    image = torch.randn(1, 1, 8, 8, 8)
    tokens = network.backbone(image)
    changed = image.clone()
    changed[..., 4:, 4:, 4:] += 1
    same = (network.backbone(changed)[0] == tokens[0]).all(dim=2)[0]
    assert same.tolist() == [True] * 8 + [False]  # start token and seven patches


def test_without_the_transformer_the_light_head_computes_what_it_does_on_silent_tokens() -> None:
    network = networks.WithoutTransformer(4, 1, 3, 4)
    image = torch.randn(1, 1, 8, 8, 8)
    expected = network.head([torch.zeros(1, 1, 2, 2, 2)], network.head.stem(image))
    assert torch.equal(network(image), expected)


def test_twins_taken_for_each_other_are_counted_among_their_own_voxels() -> None:
    twins = workflows.TwinShare([(1, 3)])
    truth, prediction = np.array([0, 1, 1, 3, 3, 2]), np.array([0, 1, 3, 3, 1, 1])
    assert twins.share(truth, prediction) == 0.5
    assert np.isnan(twins.share(np.array([0, 2]), np.array([1, 3])))


def test_a_peer_is_padded_to_the_multiple_it_wants_and_cut_back() -> None:
    image = torch.randn(1, 1, 5, 8, 3)
    assert torch.equal(networks.Peer(torch.nn.Identity(), 4)(image), image)


def test_a_linear_probe_trains_its_head_alone_and_keeps_voxels_in_place() -> None:
    size = {"hidden_size": 24, "num_layers": 1, "num_heads": 2}
    probe = networks.LinearHead(16, 8, 2, frozen=True, size=size)
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    torch.nn.init.zeros_(probe.head.weight)
    probe.head.bias.data = torch.arange(2.0 * 8**3)  # class, then voxel in raster order
    logits = probe(torch.randn(1, 1, 16, 16, 16))
    expected = torch.arange(2.0 * 8**3).reshape(2, 8, 8, 8).repeat(1, 2, 2, 2)
    assert torch.equal(logits[0], expected)


def test_collecting_copies_results_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "committed")
    kept = tmp_path / "state/acdc_few_labels/results/run_a.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    (tmp_path / "state/acdc_few_labels/run_a/model.pt").parent.mkdir()
    (tmp_path / "state/acdc_few_labels/run_a/model.pt").write_text("weights")
    assert command.main(["collect", "--state", str(tmp_path / "state")]) == 0
    copied = [file.relative_to(tmp_path / "committed") for file in (tmp_path / "committed").rglob("*.*")]
    assert copied == [Path("acdc_few_labels/run_a.json")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A small archive of bright and dark boxes: the folder of all data."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", 8), ("val", 4), ("test", 4)):
        labels = np.arange(number) % 2
        images = generator.integers(0, 20, (number, 8, 8, 8)) + 200 * (
            labels[:, None, None, None] * np.eye(8)[None, None]
        )
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(folder / "boxes.npz", **arrays)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["classification", "features"])
def test_volumes_with_a_class_are_classified_by_training_or_by_frozen_features(archive, tmp_path, task_name) -> None:
    sizes = {"network_size": SIZES["network_size"], "patch_size": 4, "attention": "none"}
    pretraining = {
        "config": ["configs/pretrain.yaml", "benchmarks/masked.yaml"], "steps": 2,
        "ids": {**sizes, "spacing": [1.0] * 3, "sample_size": [8] * 3, "batch_size": 2, "samples_per_epoch": 2},
    }  # fmt: skip
    ids = {"classes": ["0", "1"], "roi_size": [8] * 3, "in_channels": 1, **sizes}
    ids |= {"batch_size": 2} if task_name == "classification" else {"num_classes": 2, "spacing": [1.0] * 3}
    plan = {
        **PLAN, "task": task_name, "data": "boxes.npz", "split": {"given": True}, "rates": [1.0e-3], "ids": ids,
        "config": ["configs/train.json", "configs/classify.json"], "evaluate": ["configs/evaluate_classes.json"],
        "pretraining": {"masked": pretraining}, "arms": {"masked": {"ids": {}, "pretrained": "masked"}},
        "runs": [{"labels": 4, "arms": ["masked"]}], "main": [], "identity_test": False, "tuned_with": None,
        "twins": [],
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    results = work_through(tmp_path, archive)
    assert len(results["pretraining_masked"]["val_loss"]) == 2
    run = results["run_masked_4_draw0_seed0"]
    assert sorted(row["patient"] for row in run["scores"]) == [f"test_{number:04d}" for number in range(4)]
    assert all(row["0"] + row["1"] == pytest.approx(1, abs=1e-3) for row in run["scores"])
    if task_name == "features":
        assert len(run["auc_by_layer"]) == SIZES["network_size"]["num_layers"]
