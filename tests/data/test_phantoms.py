"""The phantoms keep their promises: twins that only the landmark tells apart, and grids that really vary."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from digar.data.phantoms import FIRST_UNSEEN, LABELS, Study, _draw_poses, make_study, write_phantoms
from monai.data import load_decathlon_datalist

COUNT = 60
ORGANS = [name for name in LABELS if name != "background"]
TWINS = ["twin_near", "twin_far"]


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return [make_study(0, index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def centres(studies) -> dict[str, np.ndarray]:
    """The organs' centroids in world space, mm: name to (COUNT, 3); "volume" is the middle of the grid."""
    found = {name: np.stack([_centroid(study, name) for study in studies]) for name in ORGANS}
    found["volume"] = np.stack([_to_world(study, (np.array(study.image.shape) - 1) / 2) for study in studies])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), num_training=3, num_test=2, seed=4).parent


def _to_world(study: Study, voxel: np.ndarray) -> np.ndarray:
    return study.affine[:3, :3] @ voxel + study.affine[:3, 3]


def _centroid(study: Study, name: str) -> np.ndarray:
    return _to_world(study, np.argwhere(study.label == LABELS[name]).mean(axis=0))


def _spacing(study: Study) -> np.ndarray:
    return np.linalg.norm(study.affine[:3, :3], axis=0)


def _volumes(study: Study) -> dict[str, float]:
    """Volume of each organ, mm3."""
    return {name: (study.label == LABELS[name]).sum() * _spacing(study).prod() for name in ORGANS}


def _distance(centres: dict[str, np.ndarray], one: str, other: str) -> np.ndarray:
    return np.linalg.norm(centres[one] - centres[other], axis=1)


def _as_stored(study: Study) -> np.ndarray:
    return study.image.astype(float)


def _z_score(study: Study) -> np.ndarray:
    return (study.image - study.image.mean()) / study.image.std()


def _calibrated(study: Study) -> np.ndarray:
    """Gain and offset undone with help from the truth: 0 is the darkest per cent, 1 the landmark's mean."""
    air, bright = np.percentile(study.image, 1), study.image[study.label == LABELS["landmark"]].mean()
    return (study.image - air) / (bright - air)


def _best_dice_by_intensity(values: np.ndarray, truth: np.ndarray, bins: int = 256) -> float:
    """The highest Dice that any set of intensity bins reaches for ``truth``, fitted and scored on the same voxels.

    The best set for Dice holds all bins above some posterior, so trying each prefix of the sorted bins finds it.
    """
    edges = np.histogram_bin_edges(values, bins)
    total, hit = np.histogram(values, edges)[0], np.histogram(values[truth], edges)[0]
    best_first = np.argsort(-hit / np.maximum(total, 1))
    hits, predicted = hit[best_first].cumsum(), total[best_first].cumsum()
    return float((2 * hits / (predicted + truth.sum())).max())


@pytest.mark.parametrize("normalise", [_as_stored, _z_score, _calibrated])
def test_twins_cannot_be_told_apart_by_intensity(studies, normalise):
    values = np.concatenate([normalise(study).ravel() for study in studies])
    label = np.concatenate([study.label.ravel() for study in studies])
    for twin in TWINS:
        assert _best_dice_by_intensity(values, label == LABELS[twin]) < 0.5


def test_the_same_classifier_finds_the_landmark(studies):
    """The check of the check: where intensity does tell, the classifier sees it."""
    values = np.concatenate([_calibrated(study).ravel() for study in studies])
    label = np.concatenate([study.label.ravel() for study in studies])
    assert _best_dice_by_intensity(values, label == LABELS["landmark"]) > 0.8


@pytest.mark.parametrize("normalise", [_z_score, _calibrated])
def test_intensity_guesses_no_better_than_a_coin_among_twin_voxels(studies, normalise):
    """Bayes per intensity bin, fitted on one half of the studies and scored on the other.

    Accuracy, not Dice: with only the twins to choose from, calling every voxel ``twin_near`` has a Dice of 2/3.
    """

    def twin_voxels(half):
        twins = [np.isin(study.label, [LABELS[twin] for twin in TWINS]) for study in half]
        values = np.concatenate([normalise(study)[twin] for study, twin in zip(half, twins, strict=True)])
        near = np.concatenate([study.label[twin] for study, twin in zip(half, twins, strict=True)])
        return values, near == LABELS["twin_near"]

    (values, near), (unseen_values, unseen_near) = twin_voxels(studies[::2]), twin_voxels(studies[1::2])
    edges = np.quantile(values, np.linspace(0, 1, 33)[1:-1])
    share_near = np.bincount(np.digitize(values, edges), near, 32) / np.bincount(np.digitize(values, edges), None, 32)
    guess = share_near[np.digitize(unseen_values, edges)] > near.mean()
    balanced = (guess[unseen_near].mean() + (~guess)[~unseen_near].mean()) / 2
    assert abs(balanced - 0.5) < 0.05


def test_twins_have_the_same_intensity_and_texture(studies):
    looks = []
    for study in studies:
        near, far = (_calibrated(study)[study.label == LABELS[twin]] for twin in TWINS)
        looks.append([near.mean(), far.mean(), near.std(), far.std()])
    near_mean, far_mean, near_std, far_std = np.transpose(looks)
    assert abs((near_mean - far_mean).mean()) < 0.2 * near_std.mean()
    assert (abs(near_mean - far_mean) < 2.5 * near_std).all()  # what the bias field and the noise leave
    assert near_std.mean() == pytest.approx(far_std.mean(), rel=0.05)


def test_twins_have_the_same_volume(studies):
    near, far = np.transpose([[_volumes(study)[twin] for twin in TWINS] for study in studies])
    np.testing.assert_allclose(near, far, rtol=0.06)  # what sampling on a 3 mm grid leaves
    assert near.mean() == pytest.approx(far.mean(), rel=0.01)


def test_position_and_direction_do_not_tell_the_twins_apart(studies, centres):
    apart = centres["twin_near"] - centres["twin_far"]
    directions = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    along_voxel_axes = np.stack([np.linalg.inv(s.affine[:3, :3]) @ d for s, d in zip(studies, directions, strict=True)])
    assert np.linalg.norm(directions.mean(axis=0)) < 0.3  # a random walk of 60 unit steps ends near 1 / sqrt(60) = 0.13
    for axis in np.concatenate([directions, along_voxel_axes], axis=1).T:
        assert 0.25 < (axis > 0).mean() < 0.75  # six coins, each within 3.9 standard deviations
    for twin in TWINS:
        from_the_middle = centres[twin] - centres["volume"]
        assert np.linalg.norm(from_the_middle.mean(axis=0)) < 0.3 * np.linalg.norm(from_the_middle, axis=1).mean()


def test_nothing_but_the_landmark_tells_the_twins_apart():
    """On 400 arrangements, where a coin's standard deviation is 0.025: drawn without images, to be many and quick."""
    scenes = [_draw_poses(np.random.default_rng([7, index])) for index in range(400)]
    where = {name: np.stack([scene[name].centre for scene in scenes]) for name in ORGANS}
    where["body"] = np.zeros((400, 3))
    for other in ("ellipsoid", "tube", "shell"):
        nearer = _distance(where, other, "twin_near") < _distance(where, other, "twin_far")
        assert abs(nearer.mean() - 0.5) < 0.1
    np.testing.assert_allclose(_distance(where, "body", "twin_near"), _distance(where, "body", "twin_far"))
    for axis in (where["twin_near"] - where["twin_far"]).T:
        assert abs((axis > 0).mean() - 0.5) < 0.1


def test_the_landmark_lies_on_the_near_twins_side(centres):
    near, far = _distance(centres, "landmark", "twin_near"), _distance(centres, "landmark", "twin_far")
    assert (near + 8 < far).all()  # mm


def test_every_organ_fills_80_voxels_of_3_mm(studies):
    for study in studies:
        assert min(_volumes(study).values()) > 80 * 3**3


def test_organs_are_never_cut_by_the_border_nor_covered(studies):
    for name in ORGANS:
        volumes = [_volumes(study)[name] for study in studies]
        # Scale alone spreads volumes by (1.06 / 0.94)^3 = 1.43; the rest is sampling.
        assert max(volumes) / min(volumes) < 1.6
    for study in studies:
        inner = study.label[1:-1, 1:-1, 1:-1]
        assert (inner > 0).sum() == (study.label > 0).sum()


def test_spacing_size_and_orientation_vary(studies):
    spacing = np.stack([_spacing(study) for study in studies])
    extent = np.stack([study.image.shape for study in studies]) * spacing
    assert spacing.min() >= 1.5
    assert spacing.max() <= 3
    assert (np.ptp(spacing, axis=0) > 1).all()
    assert extent.min() >= 80
    assert extent.max() < 103
    assert (np.ptp(extent, axis=0) > 15).all()
    assert len({study.image.shape for study in studies}) > COUNT / 2

    assert len({nib.aff2axcodes(study.affine) for study in studies}) > 20  # of 48
    assert {np.linalg.det(study.affine) > 0 for study in studies} == {True, False}
    tilted = [(np.abs(study.affine[:3, :3]) > 1e-6).sum() > 3 for study in studies]
    assert 0.25 < np.mean(tilted) < 0.75


def test_images_are_int16_of_varied_gain_and_labels_are_uint8(studies):
    assert {study.image.dtype for study in studies} == {np.dtype(np.int16)}
    assert {study.label.dtype for study in studies} == {np.dtype(np.uint8)}
    assert all(study.image.shape == study.label.shape for study in studies)
    assert np.ptp([np.median(study.image) for study in studies]) > 300


def test_same_seed_gives_the_same_bytes(studies):
    again = make_study(0, 3)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(again, studies[3], strict=True))


@pytest.mark.parametrize("other", [(0, 1), (1, 0)])
def test_another_index_or_seed_gives_another_study(studies, other):
    assert make_study(*other).image.tobytes() != studies[0].image.tobytes()


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed -1"):
        make_study(-1, 0)


def test_files_do_not_depend_on_the_number_of_studies(folder, tmp_path):
    write_phantoms(tmp_path, num_training=1, num_test=1, seed=4)
    names = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.nii.gz"))]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_dataset_json_lists_what_is_there(folder):
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["labels"] == {str(value): name for name, value in LABELS.items()}
    assert (dataset["numTraining"], dataset["numTest"]) == (len(dataset["training"]), len(dataset["test"])) == (3, 2)
    listed = [name for case in dataset["training"] for name in case.values()] + dataset["test"]
    truths = [name.replace("imagesTs", "labelsTs") for name in dataset["test"]]
    assert {folder / name for name in listed + truths} == set(folder.rglob("*.nii.gz"))


def test_monai_reads_the_datalist(folder):
    training = load_decathlon_datalist(folder / "dataset.json", data_list_key="training")
    test = load_decathlon_datalist(folder / "dataset.json", data_list_key="test")
    assert all(Path(case["image"]).exists() and Path(case["label"]).exists() for case in training)
    assert all(Path(case["image"]).exists() for case in test)


def test_image_and_label_files_share_the_studys_grid(folder):
    for split, index in [("Tr", 0), ("Tr", 2), ("Ts", FIRST_UNSEEN), ("Ts", FIRST_UNSEEN + 1)]:
        study = make_study(4, index)
        image = nib.load(folder / f"images{split}" / f"phantom_{index:05d}.nii.gz")
        label = nib.load(folder / f"labels{split}" / f"phantom_{index:05d}.nii.gz")
        np.testing.assert_array_equal(image.dataobj, study.image)
        np.testing.assert_array_equal(label.dataobj, study.label)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.affine, study.affine, atol=1e-4)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_folder_with_a_dataset_is_refused_by_name(tmp_path):
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(FileExistsError, match="dataset.json already exists"):
        write_phantoms(tmp_path, 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    assert (tmp_path / "dataset.json").read_text() == "mine"


@pytest.mark.parametrize("counts", [(0, 1), (FIRST_UNSEEN + 1, 1), (1, -1)])
def test_impossible_counts_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="training studies"):
        write_phantoms(tmp_path / "new", *counts)
    assert not (tmp_path / "new").exists()


def test_command_writes_the_counts_it_was_given(tmp_path):
    command = [sys.executable, "-m", "digar", "phantoms", tmp_path / "task", "--training", "2", "--test", "1"]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    dataset = json.loads((tmp_path / "task" / "dataset.json").read_text())
    assert (dataset["numTraining"], dataset["numTest"]) == (2, 1)
