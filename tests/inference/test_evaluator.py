"""A run over a folder: right masks for every image that is one, a reason for every other, and no end but its own."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.inference import pipeline
from digar.inference.journal import DONE, FAILED
from digar.inference.windows import WindowInferer
from digar.networks import SegmentationNetwork
from digar.volumes.checks import NEED, CheckedReader
from digar.volumes.memory import BUFFERS
from ignite.engine import Events
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.inference.standins import ROI, Compass, Slow, blob, make_evaluator, mask_of, write_volume

CODES = [
    "".join(code)
    for axes in itertools.permutations(["LR", "PA", "IS"])
    for code in itertools.product(*axes)
]  # fmt: skip
TILTED = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -9], [0, 0, 1, 3], [0, 0, 0, 1]]) @ np.diag([1, 1.3, 0.8, 1])


def statuses(outcomes: list) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in outcomes}


def reorient(image: nib.Nifti1Image, code: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(code)))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
    return SegmentationNetwork(16, 4, out_channels=4, size=size, feature_size=8)


# Right


@pytest.mark.parametrize("network", [Compass, small_network], ids=["compass", "real"])
@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1, 1]), TILTED], ids=["straight", "oblique"])
def test_in_every_axis_order_the_mask_is_the_reoriented_mask(network, affine, tmp_path):
    canonical = nib.Nifti1Image(blob(), affine)
    for code in CODES:
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(reorient(canonical, code), tmp_path / f"in/{code}.nii.gz")
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out", network(), thumbnails=False).run()
    assert set(statuses(outcomes).values()) == {DONE}
    expected = nib.load(tmp_path / "out/RAS_mask.nii.gz")
    assert len(np.unique(mask_of(tmp_path / "out/RAS_mask.nii.gz"))) > 2
    for code in CODES:
        mask = nib.load(tmp_path / f"out/{code}_mask.nii.gz")
        turned = reorient(expected, code)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(turned.dataobj), err_msg=code)
        np.testing.assert_allclose(mask.affine, nib.load(tmp_path / f"in/{code}.nii.gz").affine, atol=1e-6)


def test_the_compass_would_betray_a_missing_reorientation(tmp_path):
    write_volume(tmp_path / "in/a.nii", affine=np.eye(4))
    make_evaluator(tmp_path / "in", tmp_path / "out").run()
    mask = mask_of(tmp_path / "out/a_mask.nii.gz")
    assert not np.array_equal(mask, mask[::-1])
    assert mask[-1, 6, 7] == 1
    assert mask[0, 6, 7] == 0


class Bright(nn.Module):
    """Two classes by intensity: tells whether a mask lies where its image shows something."""

    def forward(self, windows: Tensor) -> Tensor:
        return 20 * torch.cat([0.5 - windows, windows - 0.5, windows - 0.8, 0 * windows - 1], dim=1)


def ball_in_world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A soft ball of 16 mm around (1, -2, 3) mm, sampled on a grid."""
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(points - [1, -2, 3], axis=-1)
    return (1000 / (1 + np.exp((distance - 16) / 2))).astype(np.int16)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 1.4, 0.9), (0.5, 0.5, 2.0)])
@pytest.mark.parametrize("degrees", [0, 12, 40])
def test_the_mask_of_another_grid_is_the_resampled_mask_of_the_first(spacing, degrees, tmp_path):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [degrees, -degrees / 2, degrees], degrees=True).as_matrix()
    affines = {"plain": np.eye(4), "other": turn @ np.diag([*spacing, 1])}
    shapes = {"plain": (50, 50, 50), "other": tuple(round(50 / s) for s in spacing)}
    for name, affine in affines.items():
        affine[:3, 3] = [1, -2, 3] - affine[:3, :3] @ ((np.array(shapes[name]) - 1) / 2)
        write_volume(tmp_path / f"in/{name}.nii", ball_in_world(affine, shapes[name]), affine)
    make_evaluator(tmp_path / "in", tmp_path / "out", Bright(), thumbnails=False).run()
    plain, other = (mask_of(tmp_path / f"out/{name}_mask.nii.gz") for name in affines)
    between = np.linalg.inv(affines["plain"]) @ affines["other"]
    inside = (plain > 0).astype(float)
    resampled = ndimage.affine_transform(inside, between[:3, :3], between[:3, 3], shapes["other"], order=1) > 0.5
    dice = 2 * ((other > 0) & resampled).sum() / ((other > 0).sum() + resampled.sum())
    assert dice > 0.98


@pytest.mark.parametrize("dtype", ["int8", "uint8", ">i2", "int32", "uint64", ">f4", "float64"])
def test_every_type_gives_the_same_mask(dtype, tmp_path):
    values = np.round(blob() / 4).astype("int16")
    write_volume(tmp_path / "in/a.nii", values)
    image = nib.Nifti1Image(values.astype(dtype), np.diag([1.0, 1.1, 0.9, 1]), dtype=np.dtype(dtype))
    nib.save(image, tmp_path / "in/b.nii.gz")
    make_evaluator(tmp_path / "in", tmp_path / "out").run()
    np.testing.assert_array_equal(mask_of(tmp_path / "out/a_mask.nii.gz"), mask_of(tmp_path / "out/b_mask.nii.gz"))


def test_windows_of_several_slabs_give_the_mask_of_one_pass(tmp_path):
    write_volume(tmp_path / "in/a.nii", blob((40, 20, 55)))
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out")
    evaluator.run()
    case = evaluator.pipeline.dataset[0]
    logits = WindowInferer((16, 16, 16))(case["image"][None], Compass())[0]
    expected = evaluator.pipeline.postprocessing({**case, "pred": logits})["pred"][0]
    np.testing.assert_array_equal(mask_of(tmp_path / "out/a_mask.nii.gz"), expected)


def test_each_volume_of_a_4d_file_is_taken_if_asked_for(tmp_path):
    first, second = blob(), np.ascontiguousarray(blob(seed=1)[::-1])
    write_volume(tmp_path / "in/a.nii", np.stack([first, second], axis=-1))
    write_volume(tmp_path / "in/first.nii", first)
    write_volume(tmp_path / "in/second.nii", second)
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out", volumes_4d="each", probabilities=True)
    assert set(statuses(evaluator.run()).values()) == {DONE}
    both = mask_of(tmp_path / "out/a_mask.nii.gz")
    assert both.shape == (*first.shape, 2)
    np.testing.assert_array_equal(both[..., 0], mask_of(tmp_path / "out/first_mask.nii.gz"))
    np.testing.assert_array_equal(both[..., 1], mask_of(tmp_path / "out/second_mask.nii.gz"))
    assert (tmp_path / "out/a_mask_probabilities_0001.npy").is_file()


def test_probabilities_are_written_in_half_precision_and_agree_with_the_mask(tmp_path):
    write_volume(tmp_path / "in/w/a.nii")
    make_evaluator(tmp_path / "in", tmp_path / "out", probabilities=True).run()
    probabilities = np.load(tmp_path / "out/w/a_mask_probabilities.npy")
    assert probabilities.dtype == np.float16
    mask = mask_of(tmp_path / "out/w/a_mask.nii.gz")
    chosen = np.take_along_axis(probabilities, mask[None].astype(int), axis=0)[0]
    assert (chosen >= probabilities.max(axis=0)).all()


# Never stuck


def broken_folder(folder: Path) -> dict[str, str]:
    """One file of each broken kind beside two sound ones: name to a part of its reason."""
    write_volume(folder / "sound.nii.gz")
    write_volume(folder / "ward/sound.nii")
    write_volume(folder / "trailing.nii", blob()[..., None])
    whole = write_volume(folder / "truncated.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii.gz").write_text("no image")
    (folder / "empty_file.nii").write_bytes(b"")
    (folder / "text.mha").write_text("no image")
    write_volume(folder / "flat.nii", blob()[:, :, 0])
    write_volume(folder / "series.nii", np.stack([blob()] * 3, axis=-1))
    write_volume(folder / "constant.nii", np.full((9, 9, 9), 3, np.int16))
    holes = blob().astype(np.float32)
    holes[:8] = np.nan
    write_volume(folder / "holes.nii", holes)
    few = blob().astype(np.float32)
    few[0, 0, 0] = np.inf
    write_volume(folder / "few_holes.nii", few)
    write_volume(folder / "complex.nii", blob().astype(np.complex64))
    write_volume(folder / "colours.nii", np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    write_volume(folder / "sheared.nii", affine=sheared)
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_sform(np.eye(4), 1)
    (folder / "huge.nii").write_bytes(header.binaryblock + bytes(4))
    (folder / "._sound.nii.gz").write_bytes(b"macOS")
    return {
        "truncated.nii.gz": "cannot be read", "text.nii.gz": "cannot be read", "empty_file.nii": "cannot be read",
        "text.mha": "cannot be read", "flat.nii": "has 2 axes", "series.nii": "holds 3 volumes",
        "constant.nii": "is empty", "holes.nii": "NaN or infinite", "complex.nii": "complex", "colours.nii": "RGB",
        "sheared.nii": "sheared", "huge.nii": "GiB of memory",
    }  # fmt: skip


def test_broken_files_get_a_reason_and_no_mask_and_the_others_get_theirs(tmp_path):
    expected = broken_folder(tmp_path / "in")
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out")
    outcomes = {outcome.name: outcome for outcome in evaluator.run()}
    assert {name for name, outcome in outcomes.items() if outcome.status == FAILED} == set(expected)
    for name, reason in expected.items():
        assert reason in outcomes[name].reason, name
    masks = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.nii.gz")}
    assert masks == {f"{n}_mask.nii.gz" for n in ("sound", "ward/sound", "trailing", "few_holes")}
    assert evaluator.failed == len(expected)
    assert outcomes["few_holes.nii"].warnings
    rows = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    assert {row["file"]: row["status"] for row in rows} == statuses(outcomes.values())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["run"]["done"], report["run"]["failed"]) == (4, len(expected))
    assert report["run"]["weights_sha256"]


def test_a_run_can_stop_at_the_first_failure(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii").write_text("no image")
    for name in ("b", "c", "d", "e", "f", "g"):
        write_volume(tmp_path / f"in/{name}.nii")
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out", fail_fast=True)
    outcomes = evaluator.run()
    assert statuses(outcomes)["a.nii"] == FAILED
    assert json.loads((tmp_path / "out/report.json").read_text())["run"]["not_run"] >= 3
    assert not any(thread.name.startswith("stage") for thread in threading.enumerate())


def test_a_second_run_does_only_what_is_missing_or_changed(tmp_path):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / f"in/{name}.nii")
    make_evaluator(tmp_path / "in", tmp_path / "out").run()
    (tmp_path / "out/b_mask.nii.gz").unlink()
    write_volume(tmp_path / "in/c.nii", blob(seed=3))
    before = (tmp_path / "out/a_mask.nii.gz").stat().st_mtime_ns
    again = make_evaluator(tmp_path / "in", tmp_path / "out")
    seen = []
    again.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output.name))
    assert list(statuses(again.run())) == ["a.nii", "b.nii", "c.nii"]
    assert sorted(seen) == ["b.nii", "c.nii"]
    assert (tmp_path / "out/a_mask.nii.gz").stat().st_mtime_ns == before
    assert set(statuses(make_evaluator(tmp_path / "in", tmp_path / "out").run()).values()) == {DONE}


def test_other_settings_or_weights_do_everything_again(tmp_path):
    write_volume(tmp_path / "in/a.nii")

    def seen(**options: object) -> int:
        evaluator = make_evaluator(tmp_path / "in", tmp_path / "out", **options)
        evaluator.run()
        return evaluator.state.iteration

    assert [seen(), seen(), seen(inferer=WindowInferer(ROI, overlap=0.5))] == [1, 0, 1]
    (tmp_path / "out_weights.pt").write_bytes(b"others")
    assert seen(inferer=WindowInferer(ROI, overlap=0.5)) == 1


class Exported(Compass):
    """As an exported network, which computes in its own way."""

    backend, precision = "ONNX Runtime", "float32"


def test_the_report_tells_the_backend_and_precision_that_were_used(tmp_path):
    write_volume(tmp_path / "in/a.nii")
    for name, network, used in (
        ("a", Compass(), ("PyTorch", "bfloat16")),
        ("b", Exported(), ("ONNX Runtime", "float32")),
    ):
        inferer = WindowInferer(ROI, precision="bfloat16")
        make_evaluator(tmp_path / "in", tmp_path / name, network, inferer=inferer).run()
        facts = json.loads((tmp_path / name / "report.json").read_text())["run"]
        assert (facts["backend"], facts["precision"]) == used
        assert facts["settings"]["inferer"]["overlap"] == 0.25


def test_warnings_are_counted_and_a_label_that_is_nowhere_is_one(tmp_path, caplog):
    write_volume(tmp_path / "in/a.nii")
    write_volume(tmp_path / "in/b.nii")

    class OnlyTwo(Compass):
        def forward(self, windows: Tensor) -> Tensor:
            return super().forward(windows) - torch.tensor([0, 0, 0, 1000.0]).view(1, 4, 1, 1, 1)

    with caplog.at_level("INFO"):
        outcomes = make_evaluator(tmp_path / "in", tmp_path / "out", OnlyTwo()).run()
    assert outcomes[0].warnings == ["no voxel of top (0 ml)"]
    assert "2 done, 2 with warnings, 0 failed, 0 not run" in caplog.text
    rows = list(csv.DictReader((tmp_path / "out/volumes.csv").open()))
    assert [(row["file"], row["top"], row["warnings"]) for row in rows] == [
        ("a.nii", "0.0", "no voxel of top (0 ml)"), ("b.nii", "0.0", "no voxel of top (0 ml)")
    ]  # fmt: skip


class Infinite(Compass):
    """Its logits overflow on bright images."""

    def forward(self, windows: Tensor) -> Tensor:
        return super().forward(windows) * (torch.inf if windows.mean() > 0.5 else 1)


def test_logits_that_are_no_numbers_are_refused_by_name_and_the_others_go_on(tmp_path):
    write_volume(tmp_path / "in/a.nii")
    bright = np.where(np.indices((16, 16, 16))[0] > 3, 100, 0).astype(np.int16)
    write_volume(tmp_path / "in/b.nii", bright, affine=np.eye(4))
    write_volume(tmp_path / "in/c.nii")
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out", Infinite()).run()
    assert statuses(outcomes) == {"a.nii": DONE, "b.nii": FAILED, "c.nii": DONE}
    assert outcomes[1].reason.startswith("the network's answer is NaN or infinite")
    assert not (tmp_path / "out/b_mask.nii.gz").exists()


class Exhausted(nn.Module):
    """Memory runs out on bright images, however few windows there are."""

    def forward(self, windows: Tensor) -> Tensor:
        if windows.shape[2] and windows.mean() > 0.5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return Compass()(windows)


def test_a_file_for_which_memory_runs_out_fails_with_its_size_and_the_others_go_on(tmp_path):
    write_volume(tmp_path / "in/a.nii")
    bright = blob((33, 12, 14)) // 3
    bright[:, :, :10] = 120 + blob((33, 12, 10)) // 50
    write_volume(tmp_path / "in/b.nii", bright, affine=np.eye(4))
    write_volume(tmp_path / "in/c.nii")
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out", Exhausted()).run()
    assert statuses(outcomes) == {"a.nii": DONE, "b.nii": FAILED, "c.nii": DONE}
    assert "memory ran out with 33x12x14 voxels" in outcomes[1].reason
    assert "3.00 GiB" in outcomes[1].reason


def test_an_image_waits_for_the_memory_that_those_before_it_hold(tmp_path, monkeypatch):
    for name in "abcd":
        write_volume(tmp_path / f"in/{name}.nii")
    need = CheckedReader(spacing=(1, 1, 1), roi_size=ROI, num_classes=4).read(tmp_path / "in/a.nii")[1][NEED]
    monkeypatch.setattr(pipeline, "available_memory", lambda: need + BUFFERS)
    left = []
    read = CheckedReader.read
    monkeypatch.setattr(
        CheckedReader, "read", lambda self, data, memory=math.inf: (left.append(memory), read(self, data, memory))[1]
    )
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out").run()
    assert set(statuses(outcomes).values()) == {DONE}
    assert left[0] == math.inf
    assert set(left) <= {math.inf, BUFFERS}  # nobody was let in beside another


def test_a_full_disk_names_itself_and_loses_nothing(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / f"in/{name}.nii")
    save, saved = nib.Nifti1Image.to_filename, []

    def full(self: nib.Nifti1Image, filename: Path) -> None:
        saved.append(filename)
        if len(saved) == 2:
            Path(filename).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(self, filename)

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out").run()
    assert statuses(outcomes) == {"a.nii": DONE, "b.nii": FAILED, "c.nii": DONE}
    assert "No space left on device" in outcomes[1].reason
    assert sorted(file.name for file in (tmp_path / "out").glob("*.nii.gz")) == ["a_mask.nii.gz", "c_mask.nii.gz"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_file_that_vanishes_while_it_runs_is_named(tmp_path):
    for name in ("a", "b"):
        write_volume(tmp_path / f"in/{name}.nii")
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/b.nii").unlink()
    outcomes = evaluator.run()
    assert statuses(outcomes) == {"a.nii": DONE, "b.nii": FAILED}
    assert "No such file" in outcomes[1].reason


def test_an_output_folder_that_cannot_be_made_ends_the_run(tmp_path):
    write_volume(tmp_path / "in/a.nii")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileExistsError):
        make_evaluator(tmp_path / "in", tmp_path / "out").run()


def test_a_thread_that_dies_ends_the_run_with_its_error(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_volume(tmp_path / f"in/{name}.nii")

    class Dying(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            raise SystemExit("the thread is gone")

    with pytest.raises(SystemExit, match="the thread is gone"):
        make_evaluator(tmp_path / "in", tmp_path / "out", Dying()).run()
    assert not any(thread.name.startswith("stage") for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_ctrl_c_keeps_what_is_done_and_writes_the_report(tmp_path):
    for name in ("a", "b", "c", "d", "e", "f"):
        write_volume(tmp_path / f"in/{name}.nii")
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out")

    def interrupt(engine: object) -> None:
        raise KeyboardInterrupt

    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["run"]["done"] >= 2
    assert report["run"]["not_run"] >= 2
    assert not list((tmp_path / "out").glob(".*"))
    assert set(statuses(make_evaluator(tmp_path / "in", tmp_path / "out").run()).values()) == {DONE}


def test_sigterm_ends_a_run_as_ctrl_c_does_and_says_so(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / f"in/{name}.nii")
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out")
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda engine: signal.raise_signal(signal.SIGTERM)
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        evaluator.run()
    assert caught.value.code == 143
    assert "stopped by SIGTERM: finished masks are kept, the same command goes on" in caplog.text
    assert json.loads((tmp_path / "out/report.json").read_text())["run"]["done"] >= 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


KILLED = """
import sys
from pathlib import Path
from tests.inference.standins import Slow, make_evaluator
make_evaluator(Path(sys.argv[1]), Path(sys.argv[2]), Slow()).run()
"""


@pytest.mark.slow
def test_killed_and_started_again_every_mask_is_whole_and_as_if_never_killed(tmp_path):
    for number in range(30):
        write_volume(tmp_path / f"in/{number:02d}.nii", blob(seed=number))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out")]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        masks = len(list((tmp_path / "out").glob("*_mask.nii.gz")))
        while process.poll() is None and len(list((tmp_path / "out").glob("*_mask.nii.gz"))) < masks + 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for mask in (tmp_path / "out").glob("[0-9]*_mask.nii.gz"):
            mask_of(mask)
    evaluator = make_evaluator(tmp_path / "in", tmp_path / "out", Slow())
    outcomes = evaluator.run()
    assert evaluator.state.iteration <= 20
    assert len(outcomes) == 30
    make_evaluator(tmp_path / "in", tmp_path / "whole").run()
    for number in range(30):
        name = f"{number:02d}_mask.nii.gz"
        np.testing.assert_array_equal(mask_of(tmp_path / "out" / name), mask_of(tmp_path / "whole" / name))


@pytest.mark.parametrize("names", [("p_0000.nii", "p_0001.nii")])
def test_channels_in_files_of_their_own_give_one_mask(names, tmp_path):
    class First(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            assert windows.shape[1] == 2
            return Compass()(windows[:, 1:])

    for number, name in enumerate(names):
        write_volume(tmp_path / "in" / name, blob(seed=number))
    write_volume(tmp_path / "in/q_0000.nii")
    outcomes = make_evaluator(tmp_path / "in", tmp_path / "out", First(), in_channels=2).run()
    assert [(o.name, o.status, o.mask) for o in outcomes[:1]] == [("p.nii", DONE, "p_mask.nii.gz")]
    assert "has 1 channels, the network takes 2" in outcomes[1].reason
