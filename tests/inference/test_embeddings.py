"""One vector per volume: the mean over all patch tokens, the files named, broken ones with their reason."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from digar.data.sequences.crops import read_crop
from digar.inference.embeddings import embed_scan, sample_windows, write_embeddings
from digar.networks import PretrainingNetwork
from monai.inferers import SimpleInferer

from tests.test_workflows import run

SIZE = {"hidden_size": 12, "num_layers": 1, "num_heads": 2}
CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PretrainingNetwork(8, 4, size=SIZE).eval()


def scan_file(path, shape=(8, 8, 8), value=None):
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(1).random(shape) if value is None else np.full(shape, value)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), path)
    return {"image": str(path)}


def embed(network, scan):
    return embed_scan(network, scan, SimpleInferer(), CPU, batch_size=3)


def test_every_voxel_is_in_a_window():
    scan = torch.rand(1, 19, 8, 5)
    seen = torch.zeros(scan.shape[1:])
    for window in sample_windows(scan, (8, 8, 8)):
        seen[window] += 1
        assert [s.stop - s.start for s in window] == [8, 8, 5]
    assert (seen > 0).all()


def test_air_is_left_out():
    scan = torch.zeros(1, 16, 8, 8)
    scan[0, :3, :3, :3] = torch.rand(3, 3, 3)
    assert [window[0].start for window in sample_windows(scan, (8, 8, 8))] == [0]


@torch.inference_mode()
def test_the_vector_is_the_mean_over_the_patch_tokens(network):
    scan = torch.rand(1, 8, 8, 8)
    sample = read_crop(scan, (slice(None),) * 3, (8, 8, 8))[None]
    expected = network.backbone(sample)[-1][0, 1:9].mean(dim=0)
    torch.testing.assert_close(embed(network, scan), expected)


@torch.inference_mode()
def test_a_larger_scan_is_the_mean_of_its_windows(network):
    halves = torch.rand(2, 1, 8, 8, 8)
    expected = (embed(network, halves[0]) + embed(network, halves[1])) / 2
    torch.testing.assert_close(embed(network, torch.cat([*halves], dim=1)), expected)


def test_files_are_named_and_broken_ones_have_a_reason(network, tmp_path):
    broken = tmp_path / "in" / "b.nii.gz"
    cases = [scan_file(tmp_path / "in" / "a.nii.gz"), {"image": str(broken)}, scan_file(tmp_path / "in" / "c.nii.gz")]
    broken.write_bytes(b"no scan")
    written = write_embeddings(network, cases, (1, 1, 1), SimpleInferer(), CPU, 2, tmp_path / "out")
    vectors = np.load(written)
    rows = list(csv.DictReader((tmp_path / "out" / "embeddings.csv").open()))
    assert (vectors.shape, vectors.dtype) == ((2, 12), np.float32)
    assert [(row["row"], row["file"]) for row in rows] == [
        ("0", cases[0]["image"]),
        ("", str(broken)),
        ("1", cases[2]["image"]),
    ]
    assert "cannot be read" in rows[1]["reason"]
    np.testing.assert_array_equal(vectors[0], vectors[1])  # the same voxels


def test_without_any_usable_volume_it_stops_with_the_reason(network, tmp_path):
    cases = [scan_file(tmp_path / "in" / "a.nii.gz", value=3.0)]
    with pytest.raises(ValueError, match=r"none of the 1 volumes can be used; the first: .*a.nii.gz: is empty"):
        write_embeddings(network, cases, (1, 1, 1), SimpleInferer(), CPU, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_embeds_the_scans_of_a_task(task, small_overlay, tmp_path):
    options = {"dataset_dir": str(task), "cache_dir": str(tmp_path / "cache")}
    run(["pretrain.yaml"], small_overlay, "training", "pretraining", output_dir=str(tmp_path / "a"), **options)
    names = ["pretrain.yaml", "embed.yaml"]
    weights = str(tmp_path / "a" / "pretrained.pt")
    run(names, small_overlay, None, output_dir=str(tmp_path / "b"), weights_file=weights, **options)
    vectors = np.load(tmp_path / "b" / "embeddings.npy")
    assert vectors.shape == (5, 24)
    assert np.isfinite(vectors).all()
