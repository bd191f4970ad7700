"""Scans on a server: fetched once into the copy, again when they change, and named in a list."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.datalists import scans
from digar.volumes.header import VolumeError
from digar.volumes.prepared import VolumeStore, prepare_volumes
from digar.volumes.reading import read_header

SPACING = (2.0, 2.0, 2.0)


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server on this machine, and the folder that it serves."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.asked.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    ) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", folder
        serving.shutdown()
        thread.join()


def write(path: Path, seed: int, shape: tuple[int, ...] = (8, 9, 10)) -> np.ndarray:
    voxels = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), path)
    return voxels


def test_a_scan_is_fetched_once_into_its_copy_and_again_when_it_changes(server, tmp_path):
    address, folder = server
    written = write(folder / "a.nii.gz", 0)
    url = f"{address}/a.nii.gz"
    for _ in range(2):
        store = VolumeStore(SPACING, tmp_path / "cache")
        store.prepare(url)
        assert np.array_equal(store.open(url)[0] + written.min(), written)
    assert Handler.asked == ["/a.nii.gz"]

    changed = write(folder / "a.nii.gz", 1, (8, 9, 12))
    store = VolumeStore(SPACING, tmp_path / "cache")
    store.prepare(url)
    assert np.array_equal(store.open(url)[0] + changed.min(), changed)
    assert Handler.asked == ["/a.nii.gz"] * 2


def test_a_list_names_addresses_and_what_cannot_be_fetched_is_reported(server, tmp_path):
    address, folder = server
    write(folder / "a.nii.gz", 0)
    (folder / "broken.nii.gz").write_bytes(b"no image")
    names = ["a.nii.gz", "broken.nii.gz", "missing.nii.gz"]
    (tmp_path / "scans.csv").write_text("image\n" + "".join(f"{address}/{name}\n" for name in names))
    cases = scans(tmp_path / "scans.csv")
    assert [case["image"] for case in cases] == [f"{address}/{name}" for name in names]
    store = prepare_volumes(cases, SPACING, str(tmp_path / "cache"), 1, str(tmp_path / "unreadable.csv"), 0.9, 2)
    assert list(store.grids) == [f"{address}/a.nii.gz"]
    _, *rows = (tmp_path / "unreadable.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == [f"{address}/{name}" for name in names[1:]]
    assert "cannot be fetched" in rows[1]


def test_a_server_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("aiohttp")
    with pytest.raises(VolumeError, match=r"http://127\.0\.0\.1:1/a\.nii\.gz: cannot be fetched"):
        VolumeStore(SPACING, tmp_path).prepare("http://127.0.0.1:1/a.nii.gz")


def test_without_a_folder_for_copies_nothing_is_fetched():
    with pytest.raises(VolumeError, match="is not on this machine: name a --cache_dir"):
        VolumeStore(SPACING, None).prepare("https://example.invalid/a.nii.gz")


def test_a_labelled_image_must_be_a_file(tmp_path):
    (tmp_path / "list.csv").write_text("image,label\nhttps://example.invalid/a.nii.gz,a_label.nii.gz\n")
    with pytest.raises(ValueError, match="line 2: an image with a label must be a file of this machine"):
        scans(tmp_path / "list.csv")


def test_other_commands_say_that_they_do_not_fetch():
    with pytest.raises(VolumeError, match="only `digar pretrain` fetches scans"):
        read_header("https://example.invalid/a.nii.gz")


def test_no_local_path_is_an_address(tmp_path):
    (tmp_path / "scans.csv").write_text("image\nfile:///etc/hostname\n")
    with pytest.raises(FileNotFoundError, match="lists files that are missing"):
        scans(tmp_path / "scans.csv")
