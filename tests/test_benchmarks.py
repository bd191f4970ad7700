"""The benchmarks run, measure something in every row, and compare like with like."""

import json
from pathlib import Path

import pytest
import torch
from digar.networks import SegmentationNetwork
from digar.networks.patches import from_patches, to_patches
from digar.networks.weights import convert_published

from benchmarks import (
    attention,
    busy_threads,
    export,
    gpu_check,
    masked,
    pretrain_data,
    pretrain_step,
    resolution,
    scaling,
)

STEPS = ["published-float32", "vit-bf16", "none-float32", "none-bf16", "none-bf16-all"]
SMALL = pretrain_step.Setting(size="tiny", image=32, patch=8, batch=2, device="cpu")


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("benchmarks") / "step.json"
    small = ["--size", "tiny", "--image", "32", "--patch", "8", "--device", "cpu", "--rounds", "1"]
    small += ["--memory-batches", "3"]
    pretrain_step.main([*small, "--variants", *STEPS, "--output", str(output)])
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def attentions(tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("benchmarks") / "attention.json"
    small = ["--grids", "4x4x4", "4x4x8", "--keys", "32", "--device", "cpu", "--rounds", "1", "--dtypes", "bf16"]
    attention.main([*small, "--output", str(output)])
    return json.loads(output.read_text())


def test_every_variant_of_the_step_has_time_ratios_and_memory(steps) -> None:
    assert [row["variant"] for row in steps["steps"]] == STEPS
    for row in steps["steps"]:
        assert all(row[key] > 0 for key in ("seconds", "to_published", "to_none_bf16", "tokens_per_second")), row


def test_memory_is_told_for_every_variant_and_checkpointing_keeps_less(steps) -> None:
    rows = {row["variant"]: row for row in steps["memory"]}
    assert list(rows) == STEPS
    assert all(row["batch"] == 3 and row["peak"] > 0 and row["kept"] > 0 for row in rows.values())
    assert rows["published-float32"]["kept_to_published"] == 1
    assert rows["none-bf16-all"]["kept"] < 0.5 * rows["none-bf16"]["kept"]


def test_the_floor_is_the_sum_over_the_products_of_plain_attention(steps) -> None:
    for dtype, floor in steps["floor_seconds"].items():
        rows = [row for row in steps["products"] if row["dtype"] == dtype]
        assert len(rows) == 8
        assert floor == pytest.approx(sum(row["seconds_per_step"] for row in rows))
        assert all(rate > 0 for row in rows for rate in row["gflop_per_second"].values())
    for row in steps["steps"]:
        if row["variant"] in ("none-float32", "none-bf16"):  # the same products in the numerator
            share = steps["floor_seconds"][row["variant"].partition("-")[2]] / row["seconds"]
            assert row["product_rate_share"] == pytest.approx(share)


def test_products_of_a_mode_are_counted_with_its_own_scores() -> None:
    none, gated, turns = (pretrain_step.step_gflop(name, SMALL) for name in ("none", "full+sequence", "local,grid"))
    assert turns < none < gated


def test_machine_facts_name_the_processor_and_no_host_or_path(steps) -> None:
    machine = steps["machine"]
    assert machine["cpu"]
    assert machine["torch"] == torch.__version__
    assert machine["cores"] > 0
    assert not any("/" in str(value) for value in machine.values())


def test_the_published_way_computes_what_plain_attention_computes() -> None:
    published = pretrain_step.build_trainable("published", "", SMALL)
    plain = pretrain_step.build_trainable("none", "", SMALL)
    weights, _ = convert_published(published.network.state_dict())
    plain.network.load_state_dict(weights)
    batch = pretrain_step.make_batch(SMALL)
    torch.testing.assert_close(plain.loss(batch), published.loss(batch), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["published-bf16", "vit-float32", "local+grid-bf16", "local,grid-bf16-cheap"])
def test_a_step_trains(variant) -> None:
    step = pretrain_step.build_step(variant, SMALL)
    losses = [step().item() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_every_mode_has_a_row_for_each_grid_and_mask(attentions) -> None:
    rows = attentions["rows"]
    assert len(rows) == 2 * 2 * len(attention.MODES)
    positive = ("scores_per_head", "seconds_forward", "seconds_training", "forward_to_full", "training_to_full")
    for row in rows:
        assert all(row[key] > 0 for key in positive), row
        assert row["peak_memory_mib"] >= 0
    full = [row["scores_per_head"] for row in rows if row["mode"] == "full" and row["prefix"]]
    assert full == [66**2, 130**2]


def test_three_ways_to_attend_are_compared(attentions) -> None:
    assert [(row["keys"], row["prefix"]) for row in attentions["ways"]] == [(32, False), (32, True)]
    assert all(row["at_once_to_fused"] > 0 and row["in_pieces_to_fused"] > 0 for row in attentions["ways"])


def test_a_grid_over_the_memory_limit_is_left_out_with_the_reason_and_so_are_larger_ones() -> None:
    limits = attention.Limits(memory_mib=1.0, seconds=10)
    case = attention.Case("full", (8, 8, 8), "float32", True, "cpu")
    (row,) = attention.measure_grid([case], {}, rounds=1, limits=limits)
    assert row["skipped"] == "up to 73 MiB, over the limit of 1"
    (larger,) = attention.measure_grid([case._replace(grid=(8, 8, 16))], {"full": row}, rounds=1, limits=limits)
    assert larger["skipped"] == row["skipped"]


def test_estimates_grow_with_the_number_of_scores() -> None:
    case = attention.Case("grid", (8, 8, 8), "bf16", False, "cpu")
    before = {"scores_per_head": 1000, "peak_memory_mib": 10.0, "seconds_training": 0.5}
    assert attention.estimate(case, 4000, before) == (40.0, 2.0)


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_exports_are_timed_in_the_precisions_that_are_fast_and_compared_with_the_network(fastest, monkeypatch) -> None:
    monkeypatch.setattr(export, "best_precision", lambda device: fastest)
    network = SegmentationNetwork(16, 4, size={"hidden_size": 24, "num_layers": 1, "num_heads": 2}).eval()
    networks = {"PyTorch": network, "TorchScript": torch.jit.script(network), "ONNX Runtime": network}
    rows = export.measure(networks, batch=2, rounds=1, device="cpu")
    differences = {row["network"]: row["largest_difference"] for row in rows}
    half = {"PyTorch, bf16", "TorchScript, bf16"} if fastest == "bfloat16" else set()
    assert set(differences) == {f"{name}, float32" for name in networks} | half
    assert differences["PyTorch, float32"] == 0
    assert differences["TorchScript, float32"] < 1e-4
    assert all(differences[name] > 1e-4 for name in half)
    assert all(row["seconds"] > 0 and row["to_pytorch"] > 0 for row in rows)


# The masked autoencoder


@pytest.fixture
def autoencoder() -> masked.MaskedAutoencoder:
    torch.manual_seed(0)
    return masked.MaskedAutoencoder(16, 4, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2}).eval()


def test_masked_patches_are_hidden_and_the_loss_counts_them_alone(autoencoder) -> None:
    image, visible = torch.randn(2, 1, 16, 16, 16), torch.tensor([16, 16])
    loss = masked.MaskedPatchLoss(autoencoder)
    prediction = autoencoder(image, visible)
    assert autoencoder.masked.sum(dim=1).tolist() == [48, 48]
    where = from_patches(autoencoder.masked[..., None].expand(-1, -1, 64), (16, 16, 16), (4, 4, 4))
    assert torch.equal(autoencoder(image + where * 5, visible), prediction)
    assert not torch.equal(autoencoder(image + (1 - where) * 5, visible), prediction)

    errors = []
    for sample, patches in enumerate(to_patches(image, (4, 4, 4))):
        for number, patch in enumerate(patches):
            if autoencoder.masked[sample, number]:
                target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                errors.append((prediction[sample, number] - target).square().mean())
    assert loss(prediction, (image, visible)).item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert loss.patch_error[:, :16].count_nonzero() == 0
    assert loss.patch_error.sum().item() == pytest.approx(sum(errors).item(), rel=1e-5)


def test_masks_are_drawn_anew_in_training_alone(autoencoder) -> None:
    image, visible = torch.randn(1, 1, 16, 16, 16), torch.tensor([16])
    fixed = [autoencoder(image, visible) for _ in range(2)]
    assert torch.equal(*fixed)
    autoencoder.train()
    masks = []
    for _ in range(2):
        autoencoder(image, visible)
        masks.append(autoencoder.masked)
    assert not torch.equal(*masks)


# Scaling


def make_plan(gpus: int, **changes: float) -> dict:
    given = {
        "volumes": 1000, "epochs": 36, "voxels": 1e6, "crops_per_gpu": 10.0, "crops_per_core": 2.0, "cores_per_gpu": 8,
        "read_rate": 1e12, "link_rate": 1e15, "batch": 4, "prepare_seconds": 36.0, "gpus_per_node": 8, "price": 2.0,
    }  # fmt: skip
    return scaling.plan(scaling.Assumptions(**{**given, **changes}), gpus, parameters=10**6)


def test_twice_the_gpus_take_half_the_time_at_the_same_cost_where_gpus_set_the_pace():
    one, two = make_plan(1), make_plan(2)
    assert one["bottleneck"] == two["bottleneck"] == "GPUs"
    assert one["hours"] == pytest.approx(1.0)  # 36000 crops at 10 per second
    assert two["hours"] == pytest.approx(0.5, rel=1e-3)
    assert two["cost"] == pytest.approx(one["cost"], rel=1e-3) == pytest.approx(2.0, rel=1e-3)
    assert one["preparing, hours"] == pytest.approx(1.25)  # 36000 core seconds on 8 cores


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [({"crops_per_core": 1.0}, "loader cores"), ({"read_rate": 4e6}, "reading"), ({"link_rate": 1e6}, "GPUs")],
)
def test_the_slowest_part_is_the_bottleneck_and_costs_time(changes, bottleneck):
    plan = make_plan(8, **changes)
    assert plan["bottleneck"] == bottleneck
    assert plan["hours"] > make_plan(8)["hours"] * 1.1


def test_pretraining_data_are_compared_with_reading_anew_and_with_stored_patches(tmp_path) -> None:
    small = ["--shape", "24", "20", "20", "--scans", "2", "--sample", "16", "--samples", "4", "--rounds", "1"]
    network = ["--patch", "8", "--size", "tiny", "--steps", "1", "--workers", "0", "--device", "cpu"]
    output = tmp_path / "data.json"
    pretrain_data.main([*small, *network, "--output", str(output)])
    result = json.loads(output.read_text())
    assert set(result["warm"]) == {"no cache", "cache", "offline patches"}
    assert all(rate > 0 for rate in [*result["warm"].values(), *result["loader"]["0"].values()])
    size = result["bytes_per_scan"]
    assert 2 * 24 * 20 * 20 <= size["cache"] < 3 * 24 * 20 * 20 + 4096  # 16 bits a voxel, and what is known of them
    assert size["50 patches"] >= 50 * 4 * 16**3
    assert 0 <= result["waiting"]["0"]["share_waiting"] < 1


def test_resolution_has_a_row_for_each_volume_and_draws_the_curve(tmp_path) -> None:
    output, picture = tmp_path / "resolution.json", tmp_path / "curve.png"
    small = ["--volumes", "16", "32", "--patch", "2", "--size", "tiny", "--layers", "2", "--full-up-to", "512"]
    resolution.main([*small, "--rounds", "1", "--output", str(output), "--picture", str(picture)])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["attention"], row["patches"], row["dilation"]) for row in rows] == [
        ("none", 512, 1),
        ("local,grid", 512, 1),
        ("local,grid", 4096, 2),
    ]
    assert all(row["seconds"] > 0 and row["kept"] > 0 for row in rows)
    assert rows[2]["kept"] < 10 * rows[1]["kept"]  # linear, but for start and end tokens
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_the_gpu_check_runs_every_section_at_toy_size(tmp_path: Path) -> None:
    assert gpu_check.main(["--device", "cpu", "--toy", "--output", str(tmp_path / "check.json")]) == 0
    sections = json.loads((tmp_path / "check.json").read_text())["sections"]
    assert list(sections) == list(gpu_check.SECTIONS)
    assert {row["attention"] for row in sections["numbers"]["rows"]} == set(gpu_check.MODES)
    assert all(row["seconds"] > 0 for row in sections["step"]["rows"])


def test_a_section_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(sizes: gpu_check.Sizes) -> list:
        raise RuntimeError("the card is gone")

    monkeypatch.setattr(gpu_check, "SECTIONS", {"step": broken, "data": lambda sizes: [{"way": "cache"}]})
    assert gpu_check.main(["--device", "cpu", "--toy", "--output", str(tmp_path / "check.json")]) == 1
    sections = json.loads((tmp_path / "check.json").read_text())["sections"]
    assert sections["step"] == {"failed": "RuntimeError: the card is gone"}
    assert sections["data"]["rows"] == [{"way": "cache"}]


def test_each_way_of_waiting_is_timed_alone_and_beside_others(capsys, monkeypatch):
    monkeypatch.setattr(busy_threads, "WAYS", {"one thread": (1, "0")})
    busy_threads.main(["--steps", "1", "--others", "0"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["one thread"]
    assert all(float(seconds) > 0 for row in rows for seconds in row[1:])
