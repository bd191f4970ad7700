"""Seeded phantom studies with known truth, written in the task layout of the Medical Segmentation Decathlon.

A phantom is a ball of soft tissue holding six organs of different shape, size, contrast and texture. Two of them are
twins: same shape, size, intensity and texture. ``twin_near`` is the one on the landmark's side, and nothing but the
landmark tells which: both ends of the pair keep room for it, every other organ is placed first, then a coin decides.
The ``ellipsoid`` has the twins' intensity too, so no threshold singles the pair out.

Organs are implicit shapes in world space (mm). Each study samples them on a grid of its own (spacing, size, axis order,
flips, some oblique), so the affine alone says where a voxel lies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

LABELS = {"background": 0, "ellipsoid": 1, "tube": 2, "shell": 3, "landmark": 4, "twin_near": 5, "twin_far": 6}
FIRST_UNSEEN = 10_000  # index of the first test study, far from training: neither count changes the other's studies

BODY_RADIUS = 38.0  # mm; every organ lies inside
BODY_LEVEL = 100.0  # intensity of soft tissue before bias, noise, gain and offset; air is 0
SPACING = (1.5, 3.0)  # mm, drawn per axis
FIELD_OF_VIEW = (80.0, 100.0)  # mm, drawn per axis
OBLIQUE_SHARE, OBLIQUE_DEGREES = 0.5, 12.0  # share of the studies tilted off the world axes, and by how much at most
ORGAN_SCALE = (0.94, 1.06)
NOISE = 10.0
BIAS, BIAS_WAVELENGTH = 0.08, 250.0  # standard deviation of the log gain; mm
GAP = 1.0  # mm, least distance between the balls that enclose two organs

Field = Callable[[np.ndarray], np.ndarray]  # points (N, 3) in mm to one value each (N,)
Balls = Sequence[tuple[float, float, float, float]]  # rows (x, y, z, radius) in mm that together enclose an organ


class Study(NamedTuple):
    """One volume with its truth: ``image`` int16 and ``label`` uint8, both ``(I, J, K)``; ``affine`` voxel to mm."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


class Organ(NamedTuple):
    """A shape around the origin, its mean intensity, and its texture's standard deviation and wavelength (mm)."""

    inside: Field
    balls: Balls
    level: float
    grain: float
    wavelength: float


class Pose(NamedTuple):
    """Where an organ lies: scaled, then rotated (3, 3), then moved to ``centre`` (3,), in mm from the body's centre."""

    centre: np.ndarray
    rotation: np.ndarray
    scale: float | np.ndarray

    def to_local(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.rotation / self.scale

    def place(self, balls: Balls) -> np.ndarray:
        """The balls (M, 4) in this pose; (T, M, 4) where the pose holds T centres, rotations and scales."""
        scaled = np.asarray(balls) * np.asarray(self.scale)[..., None, None]
        centres = scaled[..., :3] @ np.swapaxes(self.rotation, -1, -2) + self.centre[..., None, :]
        return np.concatenate([centres, scaled[..., 3:]], axis=-1)


def _ellipsoid(*semi_axes: float, power: int = 2) -> Field:
    """Points with sum |x / a|^power < 1: power 2 is an ellipsoid, 4 a box with round edges."""
    return lambda points: (np.abs(points / semi_axes) ** power).sum(axis=1) < 1


def _shell(inner: float, outer: float) -> Field:
    return lambda points: np.abs(np.linalg.norm(points, axis=1) - (inner + outer) / 2) < (outer - inner) / 2


def _half_ring(radius: float, thickness: float) -> Field:
    """Half a torus: a tube of radius ``thickness`` bent along a half circle of ``radius`` in the plane z = 0."""
    x, y, z = 0, 1, 2
    return lambda p: (np.hypot(np.hypot(p[:, x], p[:, y]) - radius, p[:, z]) < thickness) & (p[:, y] > 0)


_TUBE_BALLS = [(15 * np.cos(turn), 15 * np.sin(turn), 0, 5.4) for turn in np.linspace(0, np.pi, 13)]
_TWIN = Organ(_ellipsoid(10.5, 9.5, 8.5), [(0, 0, 0, 10.5)], level=190, grain=14, wavelength=7)
ORGANS = {
    "ellipsoid": Organ(_ellipsoid(17, 12, 10), [(x, 0, 0, 12) for x in (-5, 0, 5)], level=190, grain=14, wavelength=22),
    "tube": Organ(_half_ring(15, 5), _TUBE_BALLS, level=270, grain=6, wavelength=12),
    "shell": Organ(_shell(6, 12), [(0, 0, 0, 12)], level=45, grain=10, wavelength=9),
    "landmark": Organ(_ellipsoid(8, 8, 8, power=4), [(0, 0, 0, 10.6)], level=360, grain=20, wavelength=16),
    "twin_near": _TWIN,
    "twin_far": _TWIN,
}


def make_study(seed: int, index: int) -> Study:
    """Make phantom number ``index`` of the series ``seed``; equal arguments give equal bytes.

    Raises:
        ValueError: ``seed`` or ``index`` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"A phantom needs seed and index of at least 0, got seed {seed}, index {index}.")
    rng = np.random.default_rng([seed, index])
    body_centre = rng.uniform(-100, 100, 3)
    shape, affine = _draw_grid(rng, body_centre)
    poses = _draw_poses(rng)

    voxels = np.indices(shape).reshape(3, -1).T
    points = voxels @ affine[:3, :3].T + affine[:3, 3] - body_centre  # (N, 3) mm from the body's centre
    label = np.zeros(len(points), np.uint8)
    signal = np.where(np.linalg.norm(points, axis=1) < BODY_RADIUS, BODY_LEVEL, 0.0)

    textures = {name: _draw_field(rng, organ.wavelength) for name, organ in ORGANS.items()}
    textures["twin_far"] = textures["twin_near"]
    for name, organ in ORGANS.items():
        local = poses[name].to_local(points)
        inside = organ.inside(local)
        label[inside] = LABELS[name]
        signal[inside] = organ.level + organ.grain * textures[name](local[inside])

    signal *= np.exp(BIAS * _draw_field(rng, BIAS_WAVELENGTH)(points))
    signal += rng.normal(0, NOISE, len(points))
    image = rng.uniform(0.5, 3) * signal + rng.uniform(-500, 500)
    return Study(np.rint(image).astype(np.int16).reshape(shape), label.reshape(shape), affine)


def write_phantoms(folder: str | Path, num_training: int = 24, num_test: int = 6, seed: int = 0) -> Path:
    """Write a task of phantoms: imagesTr, labelsTr, imagesTs (unseen), labelsTs (their truth) and dataset.json.

    Training study k does not depend on the counts, nor does test study k. dataset.json comes last: a folder that
    has it is complete. It lists ``test`` as images alone, as the Decathlon does; a truth bears its image's file name.

    Returns:
        The path of dataset.json.

    Raises:
        FileExistsError: ``folder`` already holds a dataset.json.
        ValueError: no training study, more than ``FIRST_UNSEEN`` of them, or a negative number of test studies.
    """
    folder = Path(folder)
    dataset = folder / "dataset.json"
    if dataset.exists():
        raise FileExistsError(f"{dataset} already exists: choose another folder, or remove this one first.")
    if not 1 <= num_training <= FIRST_UNSEEN or num_test < 0:
        raise ValueError(
            f"Phantoms need 1 to {FIRST_UNSEEN} training studies and 0 or more test studies, "
            f"got {num_training} and {num_test}."
        )

    training = [("Tr", index) for index in range(num_training)]
    test = [("Ts", FIRST_UNSEEN + index) for index in range(num_test)]
    for split, index in tqdm(training + test, desc=f"phantoms in {folder}", unit="study"):
        study = make_study(seed, index)
        write_volume(folder / f"images{split}" / _file_name(index), study.image, study.affine)
        write_volume(folder / f"labels{split}" / _file_name(index), study.label, study.affine)

    content = {
        "name": "Phantoms",
        "description": f"Synthetic organs, two of them twins that only a landmark tells apart; seed {seed}",
        "tensorImageSize": "3D",
        "modality": {"0": "phantom"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": num_training,
        "numTest": num_test,
        "training": [
            {"image": f"./imagesTr/{_file_name(index)}", "label": f"./labelsTr/{_file_name(index)}"}
            for _, index in training
        ],
        "test": [f"./imagesTs/{_file_name(index)}" for _, index in test],
    }
    dataset.write_text(json.dumps(content, indent=2) + "\n")
    return dataset


def _draw_grid(rng: np.random.Generator, body_centre: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Draw a grid (I, J, K) and its affine (4, 4), voxel to mm, whose field of view holds the whole body."""
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)  # which way each voxel axis points, any handedness
    if rng.random() < OBLIQUE_SHARE:
        tilt = rng.normal(size=3)
        tilt *= np.radians(rng.uniform(0, OBLIQUE_DEGREES)) / np.linalg.norm(tilt)
        axes = Rotation.from_rotvec(tilt).as_matrix() @ axes
    spacing = rng.uniform(*SPACING, 3)
    shape = np.ceil(rng.uniform(*FIELD_OF_VIEW, 3) / spacing).astype(int)

    slack = shape * spacing / 2 - BODY_RADIUS  # the body need not be in the middle
    middle = body_centre + axes @ rng.uniform(-slack, slack)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(shape.tolist()), affine


def _draw_poses(rng: np.random.Generator) -> dict[str, Pose]:
    """Draw where the organs lie, clear of each other and inside the body."""
    while True:  # starts over where the last organ finds no room
        # Twins at (+-half, -rise), landmark at (+half, +rise) or its mirror image (-half, +rise), in the plane (u, v).
        u, v, _ = _draw_rotation(rng)
        half, rise = rng.uniform(14, 20), rng.uniform(12, 13.5)
        landmark_rotation, twin_rotation = _draw_rotation(rng), _draw_rotation(rng)
        landmark_scale, twin_scale = rng.uniform(*ORGAN_SCALE, 2)
        twins = [Pose(side * half * u - rise * v, twin_rotation, twin_scale) for side in (1, -1)]
        rooms = [Pose(side * half * u + rise * v, landmark_rotation, landmark_scale) for side in (1, -1)]

        # Both rooms count as taken, else the others would crowd the far side and give the answer away.
        taken = np.concatenate(
            [pose.place(_TWIN.balls) for pose in twins] + [pose.place(ORGANS["landmark"].balls) for pose in rooms]
        )
        poses = {}
        for name in ("ellipsoid", "tube", "shell"):
            pose = _find_room(rng, ORGANS[name], taken)
            if pose is None:
                break
            poses[name] = pose
            taken = np.concatenate([taken, pose.place(ORGANS[name].balls)])
        else:
            near = int(rng.integers(2))
            return poses | {"landmark": rooms[near], "twin_near": twins[near], "twin_far": twins[1 - near]}


def _find_room(rng: np.random.Generator, organ: Organ, taken: np.ndarray, tries: int = 200) -> Pose | None:
    """The first of some random poses inside the body and clear of the balls ``taken`` (M, 4); None if none is."""
    reach = BODY_RADIUS - 12  # mm; farther out hardly an organ fits
    centres = rng.uniform(-reach, reach, (tries, 3))
    rotations, scales = _draw_rotation(rng, tries), rng.uniform(*ORGAN_SCALE, tries)
    balls = Pose(centres, rotations, scales).place(organ.balls)  # (tries, balls of this organ, 4)
    inside = np.linalg.norm(balls[..., :3], axis=-1) + balls[..., 3] < BODY_RADIUS
    distance = np.linalg.norm(balls[:, :, None, :3] - taken[:, :3], axis=-1)  # (tries, balls of this organ, M)
    clear = distance > balls[:, :, None, 3] + taken[:, 3] + GAP
    fits = np.flatnonzero(inside.all(axis=1) & clear.all(axis=(1, 2)))
    return Pose(centres[fits[0]], rotations[fits[0]], scales[fits[0]]) if len(fits) else None


def _draw_rotation(rng: np.random.Generator, *count: int) -> np.ndarray:
    """One rotation matrix (3, 3), or ``count`` of them (count, 3, 3), uniform over all rotations."""
    return Rotation.from_quat(rng.normal(size=(*count, 4))).as_matrix()


def _draw_field(rng: np.random.Generator, wavelength: float, count: int = 16) -> Field:
    """A smooth random field of mean 0 and standard deviation 1: ``count`` plane waves of one length (mm)."""
    waves = rng.normal(size=(3, count))
    waves *= 2 * np.pi / wavelength / np.linalg.norm(waves, axis=0)
    phases = rng.uniform(0, 2 * np.pi, count)
    return lambda points: np.cos(points @ waves + phases).sum(axis=1) * np.sqrt(2 / count)


def _file_name(index: int) -> str:
    return f"phantom_{index:05d}.nii.gz"


def write_volume(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write ``(I, J, K)`` as NIfTI; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nib.Nifti1Image(data, affine)
    volume.header.set_xyzt_units("mm")
    volume.set_sform(affine, code="scanner")  # with both forms set and equal, every reader sees the same world
    volume.set_qform(affine, code="scanner")
    nib.save(volume, path)
