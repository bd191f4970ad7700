"""Pictures after a validation: pages of the right size that show the cases and predictions they name."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from digar.data.sequences import prepare_next_patch
from digar.networks import PretrainingNetwork
from digar.training import validation_pictures as pictures
from digar.training.losses import NextPatchLoss, next_patch_target
from digar.training.validation_pictures import PredictionPictures, ValidationPictures
from digar.volumes.pictures import Prediction
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import Tensor


class FakePages:
    """Stands in for picture_page: the rows and titles of the pages that would have been written, by file name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[SimpleNamespace]] = {}
        self.titles: dict[str, str] = {}

    def __call__(self, path: Path, rows: list, title: str, labels: dict | None = None) -> None:
        self.rows[Path(path).name] = list(rows)
        self.titles[Path(path).name] = title


def keep_volume(
    title: str, image: np.ndarray, masks: Sequence = (), affine: np.ndarray | None = None
) -> SimpleNamespace:
    """Stands in for take_planes: the whole volume instead of its planes."""
    return SimpleNamespace(title=title, image=image, masks=masks, affine=affine)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> FakePages:
    fake = FakePages()
    monkeypatch.setattr(pictures, "picture_page", fake)
    monkeypatch.setattr(pictures, "prediction_page", fake)
    monkeypatch.setattr(pictures, "take_planes", keep_volume)
    return fake


def is_picture(file: Path) -> bool:
    with Image.open(file) as picture:
        return picture.format == "PNG" and len(picture.getcolors(1 << 24)) > 50


# Segmentation


def make_case(name: str, seed: int = 0) -> dict[str, Tensor]:
    """A post-processed case: voxels of 1 x 2 x 3 mm; label and prediction lie as in the file, from right to left."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 6, 7, 8, generator=generator)
    label, prediction = (torch.randint(0, 3, (1, 6, 7, 8), generator=generator) for _ in range(2))
    affine = torch.diag(torch.tensor([1.0, 2, 3, 1], dtype=torch.float64))
    stored = torch.diag(torch.tensor([-1.0, 2, 3, 1], dtype=torch.float64))
    return {
        "image": MetaTensor(image, affine=affine, meta={"filename_or_obj": name}),
        "label": MetaTensor(label.to(torch.uint8), affine=stored),
        "pred": MetaTensor(prediction.to(torch.uint8), affine=stored),
    }


def validate(handler: ValidationPictures, batches: list[list[dict]], epoch: int = 1, times: int = 1) -> None:
    """As MONAI's evaluators run: once, under the trainer's epoch."""
    evaluator = Engine(lambda engine, batch: batch)
    evaluator.add_event_handler(Events.ITERATION_STARTED, lambda engine: setattr(engine.state, "epoch", epoch))
    handler.attach(evaluator)
    for _ in range(times):
        evaluator.run(batches, max_epochs=1)


def test_a_validation_page_has_a_row_for_each_of_the_first_cases(tmp_path):
    batches = [[make_case("a.nii.gz", 1)], [make_case("b.nii.gz", 2)], [make_case("c.nii.gz", 3)]]
    validate(ValidationPictures(tmp_path / "pictures", num_cases=2), batches, epoch=12)
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["validation_epoch_0012.png"]
    assert is_picture(tmp_path / "pictures/validation_epoch_0012.png")


def test_rows_show_image_truth_and_prediction_with_file_name_and_spacing(pages, tmp_path):
    case = make_case("/data/ward/a.nii.gz")
    validate(ValidationPictures(tmp_path), [[case]], epoch=3)
    (row,) = pages.rows["validation_epoch_0003.png"]
    assert row.title == "a.nii.gz"
    np.testing.assert_allclose(np.diag(row.affine), [1, 2, 3, 1])
    np.testing.assert_array_equal(row.image, case["image"][0].numpy())
    for mask, key in zip(row.masks, ("label", "pred"), strict=True):
        np.testing.assert_array_equal(mask, case[key][0].numpy()[::-1])
    assert pages.titles["validation_epoch_0003.png"] == "validation after epoch 3"


def test_cases_of_a_larger_batch_are_counted_one_by_one(pages, tmp_path):
    batch = [make_case(f"{name}.nii.gz") for name in "abcd"]
    validate(ValidationPictures(tmp_path, num_cases=3), [batch])
    assert [row.title for row in pages.rows["validation_epoch_0001.png"]] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_the_next_validation_starts_a_page_of_its_own(pages, tmp_path):
    validate(ValidationPictures(tmp_path), [[make_case("a.nii.gz")]], times=2)
    assert len(pages.rows["validation_epoch_0001.png"]) == 1


def test_without_a_case_no_page_is_written(tmp_path):
    validate(ValidationPictures(tmp_path), [[]])
    assert list(tmp_path.iterdir()) == []


# Next patches

PATCH = (4, 4, 2)
IMAGE = torch.rand(3, 1, 8, 8, 4, generator=torch.Generator().manual_seed(0)) * 4 + 1  # 8 patches
PREFIX = torch.tensor([7, 3, 0])  # the second is nearest to a third of the patches


def predicted_page(pages: FakePages, prediction: Tensor, norm_pixel: bool, image: Tensor = IMAGE) -> list[Prediction]:
    """The page of a batch with this prediction, ``(3, N, pixels)``; start and end positions are added."""
    padded = torch.cat([prediction, torch.full((3, 2, prediction.shape[2]), 99.0)], dim=1)
    evaluator = SimpleNamespace(state=SimpleNamespace(output={"pred": padded, "label": (image, PREFIX)}, epoch=5))
    PredictionPictures("unused", NextPatchLoss(PATCH, norm_pixel)).write(evaluator)
    return pages.rows["prediction_epoch_0005.png"]


def in_prefix(length: int) -> np.ndarray:
    """Voxels of the first patches in raster order, of two per axis."""
    mask = np.zeros((8, 8, 4), bool)
    for number in range(length):
        x, y, z = np.unravel_index(number, (2, 2, 2))
        mask[4 * x : 4 * x + 4, 4 * y : 4 * y + 4, 2 * z : 2 * z + 2] = True
    return mask


@pytest.mark.parametrize("norm_pixel", [True, False])
def test_prefix_patches_are_the_images_and_the_rest_is_predicted(norm_pixel, pages):
    sample = predicted_page(pages, torch.zeros(3, 8, 32), norm_pixel)[0]
    truth, given = IMAGE[1, 0].numpy(), in_prefix(3)
    np.testing.assert_array_equal(sample.image, truth)
    np.testing.assert_array_equal(sample.prefix, np.where(given, truth, 0))
    np.testing.assert_array_equal(sample.predicted[given], truth[given])
    np.testing.assert_allclose(sample.error, np.abs(sample.predicted - truth), atol=1e-6)
    if norm_pixel:  # a prediction of zero is each patch's own mean
        last = np.s_[4:, 4:, 2:]
        np.testing.assert_allclose(sample.predicted[last], truth[last].mean(), rtol=1e-5)
    else:
        assert not sample.predicted[~given].any()


@pytest.mark.parametrize("norm_pixel", [True, False])
def test_a_right_prediction_looks_like_the_image(norm_pixel, pages):
    for sample, image in zip(
        predicted_page(pages, next_patch_target(IMAGE, PATCH, norm_pixel), norm_pixel), IMAGE[[1, 2, 0], 0], strict=True
    ):
        np.testing.assert_allclose(sample.predicted, image.numpy(), rtol=1e-4)
        np.testing.assert_allclose(sample.error, 0, atol=1e-4)


def test_of_several_channels_the_first_is_shown(pages):
    image = torch.cat([IMAGE, -IMAGE], dim=1)
    sample = predicted_page(pages, next_patch_target(image, PATCH, True), True, image)[0]
    for volume in (sample.image, sample.predicted):
        np.testing.assert_allclose(volume, IMAGE[1, 0].numpy(), rtol=1e-4)


def test_the_rows_tell_the_length_of_the_prefix_the_one_nearest_to_a_third_first(pages):
    titles = [sample.title for sample in predicted_page(pages, torch.zeros(3, 8, 32), False)]
    assert titles == [f"prefix: {length} of 8 patches" for length in (3, 0, 7)]


def test_every_validation_of_a_pretraining_writes_one_page(tmp_path):
    network = PretrainingNetwork((8, 8, 4), PATCH, size={"hidden_size": 12, "num_layers": 1, "num_heads": 2})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[
            {"image": sign * IMAGE, "prefix": PREFIX, "kind": torch.zeros(3), "extents": torch.zeros(3, 4, 3)}
            for sign in (1, -1)
        ],
        network=network,
        prepare_batch=prepare_next_patch,
        decollate=False,
    )
    PredictionPictures(tmp_path, NextPatchLoss(PATCH)).attach(evaluator)
    for epoch in (1, 2):
        evaluator.run(epoch)
    names = ["prediction_epoch_0001.png", "prediction_epoch_0002.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert is_picture(tmp_path / names[1])
