"""What memory is left is told by the process' own group; what a volume needs is never less than what it takes."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from digar.volumes import memory
from digar.volumes.header import Header

from tests.conftest import ROOT

GIB = 2**30
HEADER = Header("a.nii", (512, 512, 800), 1, np.eye(4), np.dtype(np.int16), placement={})


@pytest.mark.parametrize("name", ["_system", "_cgroup", "_address_space"])
def test_the_least_of_three_limits_is_what_can_be_taken(name, monkeypatch):
    before = memory.available_memory()
    assert before > 1e6
    monkeypatch.setattr(memory, name, lambda: 12345.0)
    assert memory.available_memory() == 12345.0


def write_group(folder: Path, version: int, limit: float | str, usage: float, files: float = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "total_" if version == 1 else ""
    (folder / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {files / 2:.0f}\n{prefix}active_file {files / 2:.0f}\n"
    )


@pytest.fixture(params=[1, 2])
def groups(request, tmp_path, monkeypatch):
    """A machine with control groups of either version; this process is in ``/slurm/job_7/step``."""
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    line = "4:cpuset,memory:/slurm/job_7/step" if request.param == 1 else "0::/slurm/job_7/step"
    (tmp_path / "proc/self/cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    top = tmp_path / ("sys/fs/cgroup/memory" if request.param == 1 else "sys/fs/cgroup")
    write_group(top, request.param, 2**63 - 4096 if request.param == 1 else "max", 50 * GIB)
    return request.param, top


def test_the_limit_of_the_process_own_group_counts(groups):
    version, top = groups
    write_group(top / "slurm/job_7/step", version, 4 * GIB, 1 * GIB)
    write_group(top / "slurm/job_8", version, 1 * GIB, 1 * GIB)  # of another job
    assert memory._cgroup() == 3 * GIB


def test_the_least_on_the_way_up_counts(groups):
    version, top = groups
    write_group(top / "slurm/job_7/step", version, 4 * GIB, 1 * GIB)
    write_group(top / "slurm/job_7", version, 4 * GIB, 2.5 * GIB)
    assert memory._cgroup() == 1.5 * GIB


def test_cached_files_make_room(groups):
    version, top = groups
    write_group(top / "slurm/job_7/step", version, 4 * GIB, 4 * GIB, files=3 * GIB)
    assert memory._cgroup() == 3 * GIB


def test_in_a_container_that_sees_its_own_group_alone_that_counts(groups):
    version, top = groups
    write_group(top, version, 8 * GIB, 2 * GIB)  # slurm/job_7 is not mounted there
    assert memory._cgroup() == 6 * GIB


def test_without_groups_or_limits_nothing_is_limited(groups, tmp_path):
    assert memory._cgroup() >= 2**62 / 2
    (tmp_path / "proc/self/cgroup").unlink()
    assert memory._cgroup() == math.inf


def test_more_classes_voxels_and_channels_need_more_memory():
    def need(header: Header = HEADER, channels: int = 1, classes: int = 3) -> float:
        return memory.needed_memory(header, channels, 1, header.shape, classes, (48, 64, 48))

    assert need() > 512 * 512 * 800 * 8
    assert need(classes=100) > need()
    assert need(channels=4) > 2 * need()
    assert need(replace(HEADER, shape=(512, 512, 900))) > need()
    assert need(replace(HEADER, placement=None, dtype=np.dtype(np.float64))) > need()  # ITK holds the file too


MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import nibabel as nib, numpy as np, torch
from digar.inference.inverting import InvertToMaskd
from digar.inference.masks import LargestComponentd, RemapLabelsd, volumes_ml
from digar.inference.windows import WindowInferer
from digar.volumes.checks import NEED, CheckedLoadImaged
from digar.volumes.grids import WorkingGridd
from digar.volumes.intensities import ScaleIntensityd
from digar.volumes.memory import BUFFERS
from digar.volumes.writing import write_mask
from monai.transforms import Compose

def resident(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

def network(windows):
    return torch.cat([(0.3 + 0.1 * k) * windows + 0.2 * (k % 3) for k in range(classes)], 1)

def way(file):
    load = CheckedLoadImaged("image", in_channels=1, spacing=spacing, roi_size=roi, num_classes=classes)
    image = Compose([load, WorkingGridd("image", spacing), ScaleIntensityd("image")])({"image": str(file)})["image"]
    slabs = WindowInferer(roi).slabs(image, network, torch.device("cpu"))
    post = Compose([InvertToMaskd("pred"), LargestComponentd("pred"), RemapLabelsd("pred", {1: 5})])
    mask = post({"image": image, "pred": slabs})["pred"].numpy()[0]
    volumes_ml(mask, np.eye(4), {1: "one", 5: "five"})
    write_mask(folder / "mask.nii.gz", mask, np.eye(4))
    return image.meta[NEED] + BUFFERS

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
spacing, roi, classes = settings["spacing"], settings["roi"], settings["classes"]
for name, shape in (("small", [20, 20, 20]), ("large", settings["shape"])):
    values = np.random.default_rng(0).random(shape, dtype=np.float32) * 200
    image = nib.Nifti1Image(values.astype(settings["type"]), np.diag([-1.0, 1, settings["slice"], 1]))
    if settings["slope"]:
        image.header.set_slope_inter(settings["slope"], 1)
    nib.save(image, folder / f"{name}.nii.gz")
del values, image
way(folder / "small.nii.gz")
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
need = way(folder / "large.nii.gz")
print(json.dumps([resident("VmHWM") - before, need]))
"""
WAYS = {
    "whole numbers at their spacing": {},
    "scaled, finer than the network": {"type": "float64", "spacing": [2, 2, 2]},
    "coarser than the network": {"shape": [120, 120, 60], "slice": 2.0, "spacing": [0.7, 0.7, 0.7], "slope": 0.5},
    "many classes": {"classes": 24, "shape": [160, 160, 100], "roi": [64, 64, 64]},
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is asked of Linux")
@pytest.mark.parametrize("way", WAYS)
def test_a_volume_never_takes_more_than_the_estimate(way, tmp_path):
    settings = {"shape": [200, 200, 160], "type": "int16", "slice": 1.0, "spacing": [1, 1, 1], "roi": [48, 48, 48],
                "classes": 3, "slope": None} | WAYS[way]  # fmt: skip
    words = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(settings)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, need = json.loads(done.stdout.splitlines()[-1])
    assert 0.1 * need < peak < need
