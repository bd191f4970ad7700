"""Prepared scans: what is kept of every kind of file, when it is made anew, and what is refused and reported."""

import csv
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.volumes import prepared as volumes
from digar.volumes.checks import CheckedReader
from digar.volumes.header import VolumeError
from digar.volumes.prepared import VolumeStore, compact, copy_name, prepare_volumes, resampled
from digar.volumes.reading import read_volume
from monai.transforms import Spacing

SPACING = (2.0, 2.0, 2.0)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None, slope: float | None = None) -> str:
    image = nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return str(path)


def intensities(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def restored(store: VolumeStore, path: str) -> np.ndarray:
    """The intensities that a copy tells."""
    about = json.loads(store.copies[path].with_suffix(".json").read_text())["facts"]
    steps, offsets = (np.array(about[key])[:, None, None, None] for key in ("steps", "offsets"))
    return store.open(path) * steps + offsets


def prepared(path: str, cache_dir: Path, in_channels: int = 1) -> VolumeStore:
    store = VolumeStore(SPACING, cache_dir, in_channels)
    store.prepare(path)
    return store


# What a copy holds


def test_a_copy_is_memory_mapped_and_off_by_less_than_a_65000th_of_the_range(tmp_path):
    array = intensities(9, 8, 7)
    path = write(tmp_path / "a.nii.gz", array)
    store = prepared(path, tmp_path / "cache")
    opened = store.open(path)
    assert not opened.flags.owndata
    assert not opened.flags.writeable
    assert opened.dtype == np.int16
    assert opened.shape == (1, 9, 8, 7)
    assert np.abs(restored(store, path)[0] - array).max() <= (array.max() - array.min()) / 65000


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(np.arange(504) % 256, np.uint8), (np.arange(504) % 250 - 1024, np.uint8), (np.arange(504) * 8 - 1024, np.int16)],
    ids=["8-bit", "few-numbers", "ct"],
)
def test_whole_numbers_are_kept_exactly(array, dtype, tmp_path):
    path = write(tmp_path / "a.nii.gz", array.reshape(9, 8, 7).astype(np.int16))
    store = prepared(path, tmp_path / "cache")
    assert store.open(path).dtype == dtype
    np.testing.assert_array_equal(restored(store, path)[0], array.reshape(9, 8, 7))


def test_a_scaled_header_gives_the_scaled_intensities(tmp_path):
    raw = np.arange(504, dtype=np.int16).reshape(9, 8, 7)
    path = write(tmp_path / "a.nii.gz", raw, slope=0.3)
    stored = np.asarray(nib.load(path).dataobj)
    assert not np.array_equal(stored, np.rint(stored))
    store = prepared(path, tmp_path / "cache")
    np.testing.assert_allclose(restored(store, path)[0], stored, atol=np.ptp(stored) / 65000)


def test_one_hot_voxel_does_not_coarsen_the_others():
    channel = np.random.default_rng(0).random((30, 30, 30)).astype(np.float32)
    channel[3, 4, 5] = 1e6
    whole, step, offset = compact(channel)
    kept = whole * step + offset
    others = np.ones(channel.shape, bool)
    others[3, 4, 5] = False
    assert np.abs(kept - channel)[others].max() < 1 / 3000
    assert kept[3, 4, 5] == kept.max() > 8


def test_another_spacing_and_orientation_are_resampled_once_as_monai_does(tmp_path):
    affine = np.diag([-1.0, 3.0, 1.5, 1])
    array = intensities(16, 10, 14)
    path = write(tmp_path / "a.nii.gz", array, affine)
    store = prepared(path, tmp_path / "cache")
    turned = read_volume(write(tmp_path / "b.nii.gz", array[::-1].copy(), np.diag([1.0, 3.0, 1.5, 1])))
    expected = Spacing(pixdim=SPACING, mode="bilinear")(turned).numpy()
    assert store.open(path).shape == expected.shape
    np.testing.assert_allclose(restored(store, path), expected, atol=0.01)


def test_a_position_in_the_file_is_found_in_the_prepared_scan(tmp_path):
    affine = np.array([[0, 0, -3.0, 50], [1, 0, 0, -20], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    array = np.zeros((20, 16, 12), np.float32)
    array[13:16, 4:6, 7:9] = 100
    path = write(tmp_path / "a.nii.gz", array, affine)
    store = prepared(path, tmp_path / "cache")
    position = store.voxel(path, (14, 4.5, 7.5))
    bright = np.argwhere(store.open(path)[0] > store.open(path).max() / 2)
    np.testing.assert_allclose(position, bright.mean(axis=0), atol=1)


def test_infinite_voxels_and_nan_take_the_smallest_finite_intensity(tmp_path):
    array = intensities(9, 8, 7)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = resampled(write(tmp_path / "a.nii.gz", array), CheckedReader(None, SPACING))
    smallest = array[np.isfinite(array)].min()
    assert volume[0, 0, 0, :3].tolist() == [smallest] * 3
    assert volume.isfinite().all()


@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_fourth_axis_becomes_channels(in_channels, tmp_path):
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7, 3))
    assert prepared(path, tmp_path / "cache", in_channels).open(path).shape == (3, 9, 8, 7)


def test_another_number_of_channels_than_the_networks_is_refused(tmp_path):
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7, 3))
    with pytest.raises(VolumeError, match="a.nii.gz: has 3 channels, the network takes 2"):
        prepared(path, tmp_path / "cache", 2)


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (np.full((9, 8, 7), 3.0, np.float32), None, "is empty: every voxel is 3"),
        (np.full((9, 8, 7), np.nan, np.float32), None, "100 % of its voxels are NaN or infinite"),
        (intensities(9, 8, 7), np.diag([900.0, 900, 900, 1]), "900 x 900 x 900 mm, and only 0.005 to 15 mm"),
    ],
    ids=["constant", "nan", "huge"],
)
def test_a_scan_without_anything_to_learn_is_refused(array, affine, reason, tmp_path):
    path = write(tmp_path / "a.nii.gz", array, affine)
    with pytest.raises(VolumeError, match=f"a.nii.gz: .*{reason}"):
        prepared(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_without_a_cache_the_intensities_themselves_are_read_and_nothing_is_written(tmp_path):
    array = intensities(9, 8, 7)
    path = write(tmp_path / "a.nii.gz", array)
    store = VolumeStore(SPACING, None)
    store.prepare(path)
    np.testing.assert_array_equal(store.open(path)[0], array)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


# When it is made anew


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    monkeypatch.setattr(volumes, "resampled", lambda path, *options: (reads.append(path), resampled(path, *options))[1])
    return reads


def test_a_copy_is_made_once_and_serves_later_runs(tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))
    for _ in range(3):
        prepared(path, tmp_path / "cache")
    assert reads == [path]


def test_a_changed_file_replaces_its_copy(tmp_path):
    cache = tmp_path / "cache"
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))
    prepared(path, cache)
    changed = intensities(5, 8, 7, seed=1)
    write(tmp_path / "a.nii.gz", changed)
    os.utime(path, ns=(0, 10**18))
    store = prepared(path, cache)
    np.testing.assert_allclose(restored(store, path)[0], changed, atol=0.01)
    assert len(list(cache.rglob("*.npy"))) == len(list(cache.rglob("*.json"))) == 1


def test_two_spacings_and_two_rules_have_a_copy_each(tmp_path):
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))
    names = {copy_name(path, spacing, 0.01) for spacing in (SPACING, (1, 1, 1))}
    names.add(copy_name(path, SPACING, 0.02))
    assert len(names) == 3


DAMAGES = [
    "truncated",
    "other-shape",
    "zeroed",
    "zeroed and old",
    "bit",
    "empty",
    "no-json",
    "no-copy",
    "list",
    "types",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_is_not_whole_is_made_anew(damage, tmp_path):
    array = intensities(9, 8, 7)
    path = write(tmp_path / "a.nii.gz", array)
    copy = prepared(path, tmp_path / "cache").copies[path]
    if damage == "truncated":
        copy.write_bytes(copy.read_bytes()[:-10])
    elif damage == "other-shape":
        np.save(copy, np.zeros((1, 2, 2, 2), np.int16))
    elif damage.startswith("zeroed"):
        stat, content = copy.stat(), copy.read_bytes()
        copy.write_bytes(content[:128] + bytes(len(content) - 128))
        if damage == "zeroed and old":
            os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "bit":
        content = bytearray(copy.read_bytes())
        content[300] ^= 1
        copy.write_bytes(content)
    elif damage == "empty":
        copy.write_bytes(b"")
    elif damage in ("list", "types"):
        known = json.loads(copy.with_suffix(".json").read_text())
        known["facts"]["affine"] = "far away"
        copy.with_suffix(".json").write_text(json.dumps([] if damage == "list" else known))
    else:
        (copy if damage == "no-copy" else copy.with_suffix(".json")).unlink()
    store = prepared(path, tmp_path / "cache")
    np.testing.assert_allclose(restored(store, path)[0], array, atol=0.01)


def test_a_sound_copy_that_was_moved_is_kept(tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))
    copy = prepared(path, tmp_path / "cache").copies[path]
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content)
    prepared(path, tmp_path / "cache")
    assert reads == [path]


def test_what_is_odd_about_a_scan_is_said_in_every_run(tmp_path, caplog):
    array = intensities(9, 8, 7)
    array[0, 0, 0] = np.nan
    path = write(tmp_path / "a.nii.gz", array)
    for _ in range(2):
        caplog.clear()
        prepared(path, tmp_path / "cache")
        assert f"{path}: 1 NaN or infinite voxels were replaced" in caplog.text


def test_many_at_once_make_the_same_copy_without_harm(tmp_path):
    array = intensities(20, 20, 20)
    path = write(tmp_path / "a.nii.gz", array)
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: prepared(path, tmp_path / "cache"), range(16)))
    for store in stores:
        np.testing.assert_allclose(restored(store, path)[0], array, atol=0.01)
    assert len([file for file in (tmp_path / "cache").rglob("*") if file.is_file()]) == 2


def test_a_full_disk_is_said_and_leaves_no_half_copy(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="a.nii.gz cannot be written to .*cache: .*No space left.*another --cache_dir"):
        prepared(path, tmp_path / "cache")
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


def test_a_copy_that_vanishes_during_a_run_is_named_with_its_scan(tmp_path):
    path = write(tmp_path / "a.nii.gz", intensities(9, 8, 7))
    store = prepared(path, tmp_path / "cache")
    store.copies[path].unlink()
    with pytest.raises(VolumeError, match="a.nii.gz: its copy .* cannot be read"):
        store.open(path)


# All scans of a run


def prepare(cases: list[dict], folder: Path, share: float = 0.5, cache: bool = True) -> VolumeStore:
    cache_dir = str(folder / "cache") if cache else None
    return prepare_volumes(cases, SPACING, cache_dir, 1, str(folder / "out/unreadable.csv"), share, num_workers=2)


def reported(folder: Path) -> list[list[str]]:
    with (folder / "out/unreadable.csv").open(newline="") as stream:
        return list(csv.reader(stream))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three good scans, then a truncated one and a constant one."""
    paths = [write(tmp_path / f"{name}.nii.gz", intensities(9, 8, 7, seed=i)) for i, name in enumerate("abcd")]
    Path(paths[3]).write_bytes(Path(paths[3]).read_bytes()[:200])
    return [*paths, write(tmp_path / "e.nii.gz", np.ones((9, 8, 7), np.float32))]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no-cache"])
def test_scans_that_cannot_be_used_are_reported_and_left_out(cache, files, tmp_path):
    store = prepare([{"image": path} for path in files], tmp_path, cache=cache)
    assert [path in store for path in files] == [True, True, True, False, False]
    header, *rows = reported(tmp_path)
    assert header == ["path", "reason"]
    assert [row[0] for row in rows] == files[3:]
    assert "cannot be read" in rows[0][1]
    assert "is empty" in rows[1][1]


def test_too_large_a_share_stops_and_names_report_share_and_first_reason(files, tmp_path):
    with pytest.raises(
        ValueError, match="2 of 5 scans cannot be used.*max_unreadable_share 0.3: .*unreadable.csv.*d.nii"
    ):
        prepare([{"image": path} for path in files], tmp_path, share=0.3)
    assert len(reported(tmp_path)) == 3


def test_the_report_of_a_former_run_does_not_stay(files, tmp_path):
    prepare([{"image": path} for path in files], tmp_path)
    prepare([{"image": path} for path in files[:3]], tmp_path)
    assert reported(tmp_path) == [["path", "reason"]]


def test_a_scan_of_several_cases_is_read_once(files, tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    prepare([{"image": files[0]}, {"image": files[:2]}, {"image": files[1]}], tmp_path)
    assert sorted(reads) == files[:2]


def test_modalities_on_other_grids_are_reported_with_both_files(files, tmp_path):
    moved = write(
        tmp_path / "moved.nii.gz",
        intensities(9, 8, 7),
        np.array([[2.0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]),
    )
    store = prepare([{"image": [files[0], moved]}, {"image": files[:2]}], tmp_path)
    (row,) = reported(tmp_path)[1:]
    assert row[0] == files[0]
    assert f"{moved}: lies 1 mm apart from the first of its study, {files[0]}" in row[1]
    assert moved in store


def test_two_processes_leave_out_what_either_could_not_read(files, tmp_path, monkeypatch):
    monkeypatch.setattr(volumes.idist, "get_rank", lambda: 1)
    monkeypatch.setattr(volumes.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(volumes.idist, "all_gather", lambda own: [{files[0]: "is elsewhere"}, own])
    reads = count_reads(monkeypatch)
    store = prepare([{"image": path} for path in files], tmp_path, share=0.9)
    assert [path in store for path in files] == [False, True, True, False, False]
    assert set(reads) == set(files)  # its own share first, then the rest
    assert not (tmp_path / "out").exists()  # the first process writes the report
