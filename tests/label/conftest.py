"""A MONAI Label server as users start it, over a copy of the bundle and a folder of small images."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter

from tests.conftest import ROOT

ORIENTATIONS = ("RAS", "LPS", "PIR", "ASL", "SAL", "ILA")
NUM_CASES = 4
SERVE = """
import sys
bundle, _, studies, _, port = sys.argv[1:]
sys.path.insert(0, f"{bundle}/scripts")
from digar.cli.serve import serve
serve(studies, port=int(port))
"""


def hippocampus_like(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A bright bent ellipsoid on grey noise, and its label: 1 for the front half, 2 for the back half."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    bend = 0.25 * y**2
    inside = (x / 0.35) ** 2 + (y / 0.7) ** 2 + ((z - bend + 0.1) / 0.3) ** 2 < 1
    label = np.where(inside, np.where(y > 0, 1, 2), 0).astype(np.uint8)
    texture = gaussian_filter(rng.normal(size=shape), 1.5) * 60
    image = 200 + 150 * gaussian_filter(inside.astype(float), 1) + texture + rng.normal(0, 8, shape)
    return image.astype(np.float32), label


def save(path: Path, array: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> None:
    image = nib.Nifti1Image(array, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)


def write_cases(folder: Path, labels: Path) -> None:
    """Images ``case_N`` with labels beside; the second one is smaller than the crop."""
    affine = np.eye(4)
    for number in range(NUM_CASES):
        shape = (20, 24, 18) if number == 1 else (36, 50, 34)
        image, label = hippocampus_like(number, shape)
        save(folder / f"case_{number}.nii.gz", image, affine)
        save(labels / f"case_{number}.nii.gz", label, affine)


def write_odd_grids(folder: Path) -> None:
    """The first case in other orientations, an oblique image of another spacing, one of whole numbers."""
    affine = np.eye(4)
    image, _ = hippocampus_like(0, (36, 50, 34))
    for codes in ORIENTATIONS[1:]:
        save(folder / f"turned_{codes}.nii.gz", image, affine, codes)
    angle = np.radians(10)
    oblique = np.array(
        [
            [0.9 * np.cos(angle), -1.1 * np.sin(angle), 0, 12],
            [0.9 * np.sin(angle), 1.1 * np.cos(angle), 0, -40],
            [0, 0, 1.4, 7],
            [0, 0, 0, 1],
        ]
    )
    image, _ = hippocampus_like(5, (40, 46, 25))
    save(folder / "oblique.nii.gz", image, oblique, "PIR")
    save(folder / "whole_numbers.nii.gz", image.astype(np.int16), affine)


@dataclass
class Server:
    """A running server: where it answers, the copy of the bundle that it serves, its images and its log."""

    url: str
    bundle: Path
    studies: Path
    labels: Path
    log: Path

    def get(self, path: str) -> dict:
        response = requests.get(self.url + path, timeout=60)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, **options: object) -> requests.Response:
        return requests.post(self.url + path, timeout=600, **options)

    def infer(self, image: str, folder: Path) -> nib.Nifti1Image:
        """The mask of an image, over plain HTTP."""
        response = self.post(f"/infer/digar?image={image}&output=image")
        assert response.status_code == 200, self.last_words()
        path = folder / f"{image}_from_server.nii.gz"
        path.write_bytes(response.content)
        return nib.load(path)

    def ask(self, method: str, path: str, **options: object) -> requests.Response:
        return requests.request(method, self.url + path, timeout=600, **options)

    def save_label(self, image: str, path: Path | None = None, tag: str = "", **params: object) -> requests.Response:
        path = path or self.labels / f"{image}.nii.gz"
        with path.open("rb") as file:
            files, data = {"label": (path.name, file)}, {"params": json.dumps(params)}
            return self.ask("PUT", f"/datastore/label?image={image}&tag={tag}", files=files, data=data)

    def delete_label(self, image: str, tag: str = "final") -> None:
        self.ask("DELETE", f"/datastore/label?id={image}&tag={tag}").raise_for_status()

    def train(self, **request: object) -> dict:
        """Train, wait for the end, and return what the server says of it."""
        assert self.post("/train/digar", json=request).status_code == 200
        return self.wait_for("/train/")

    def wait_for(self, path: str) -> dict:
        """The last task of ``/train/`` or ``/scoring/`` when it has ended."""
        while (task := self.get(path))["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(0.5)
        return task

    def wait_for_images(self, *images: str) -> None:
        """Until the server, which watches its folder, has seen them."""
        while not set(images) <= set(self.get("/datastore/?output=all")["objects"]):
            time.sleep(0.5)

    def last_words(self) -> str:
        return self.log.read_text()[-4000:]

    def is_serving(self) -> bool:
        return self.get("/info/")["name"] != ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def copy_bundle(target: Path) -> Path:
    """What a release of the bundle holds: the checkout's own weights are never written."""
    for name in ("configs", "scripts", "models", "apps"):
        skipped = shutil.ignore_patterns("__pycache__", "former", "logs")
        shutil.copytree(ROOT / name, target / name, ignore=skipped)
    return target


def stock_command(app: Path, *options: str) -> list[str]:
    """MONAI Label's command that serves an app, without studies and port."""
    return ["-m", "monailabel.main", "start_server", "--app", str(app), "--host", "127.0.0.1", *options]


def run_server(folder: Path, bundle: Path, command: list[str]) -> Iterator[Server]:
    """Start a server over small images, wait until it answers, hand it out, and stop it by its own process id."""
    write_cases(folder / "studies", folder / "labels")
    port = free_port()
    command = [sys.executable, *command, "--studies", str(folder / "studies"), "--port", str(port)]
    log = folder / "server.log"
    server = Server(f"http://127.0.0.1:{port}", bundle, folder / "studies", folder / "labels", log)
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while not _answers(server.url):
                assert process.poll() is None, server.last_words()
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/info/", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MONAI Label's own ``monaibundle`` app, as it comes, with the bundle linked as ``model/digar``."""
    folder = tmp_path_factory.mktemp("stock")
    bundle = copy_bundle(folder / "bundle")
    write_odd_grids(folder / "studies")
    download = ["-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", "apps"]
    subprocess.run([sys.executable, *download], cwd=folder, check=True, capture_output=True)
    app = folder / "apps" / "monaibundle"
    (app / "model").mkdir()
    (app / "model" / "digar").symlink_to(bundle)
    options = ["--conf", "models", "digar", "--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]
    yield from run_server(folder, bundle, stock_command(app, *options))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundle's own app, as ``digar serve`` starts it."""
    folder = tmp_path_factory.mktemp("own")
    bundle = copy_bundle(folder / "bundle")
    yield from run_server(folder, bundle, ["-c", SERVE, str(bundle)])


@pytest.fixture(scope="session")
def infer_folder() -> Callable[[Path, Path, Path], Path]:
    """The folder inference of a bundle, by its documented command: bundle, images, masks."""

    def run(bundle: Path, images: Path, masks: Path) -> Path:
        command = [
            sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
            "--dataset_dir", str(images), "--output_dir", str(masks),
        ]  # fmt: skip
        result = subprocess.run(command, cwd=bundle, env=os.environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        return masks

    return run
