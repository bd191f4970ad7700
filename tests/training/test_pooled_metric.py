"""The validation loss does not depend on how the samples are cut into batches."""

import pytest
import torch
from digar.training.losses import NextPatchLoss, pooled_loss_metric
from ignite.engine import Engine
from torch import Tensor

PATCH = (2, 2, 4)
PREFIX = torch.tensor([0, 7, 3, 6, 1])  # of 8 patches: 8, 1, 5, 2 and 7 are predicted


def make_samples() -> tuple[Tensor, Tensor]:
    """Images and predictions whose error grows from sample to sample, so that weights matter."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 2, 4, 4, 8, generator=generator)
    scale = torch.arange(1.0, 6.0)[:, None, None]
    return image, torch.randn(5, 10, 32, generator=generator) * scale


def pooled(loss: NextPatchLoss, sizes: list[int]) -> float:
    """The metric of an engine that sees the samples in batches of these sizes."""
    image, prediction = make_samples()
    cuts = zip(image.split(sizes), prediction.split(sizes), PREFIX.split(sizes), strict=True)
    batches = [{"pred": predicted, "label": (images, prefix)} for images, predicted, prefix in cuts]
    engine = Engine(lambda engine, batch: batch)
    pooled_loss_metric(loss).attach(engine, "val_loss")
    return engine.run(batches).metrics["val_loss"]


@pytest.mark.parametrize("norm_pixel", [True, False])
@pytest.mark.parametrize("sizes", [[5], [4, 1], [2, 2, 1], [1, 1, 1, 1, 1]], ids=str)
def test_the_pooled_loss_of_any_batches_is_the_loss_of_all_samples_at_once(sizes, norm_pixel):
    loss = NextPatchLoss(PATCH, norm_pixel)
    image, prediction = make_samples()
    assert pooled(loss, sizes) == pytest.approx(loss(prediction, (image, PREFIX)).item(), rel=1e-5)


def test_the_mean_of_the_batches_would_be_another_number():
    loss = NextPatchLoss(PATCH)
    image, prediction = make_samples()
    alone = [loss(prediction[i : i + 1], (image[i : i + 1], PREFIX[i : i + 1])).item() for i in range(5)]
    assert abs(sum(alone) / 5 - pooled(loss, [1] * 5)) > 0.1


def test_a_second_validation_starts_from_nothing():
    image, prediction = make_samples()
    engine = Engine(lambda engine, batch: batch)
    pooled_loss_metric(NextPatchLoss(PATCH)).attach(engine, "val_loss")
    batches = [{"pred": prediction, "label": (image, PREFIX)}]
    first = engine.run(batches).metrics["val_loss"]
    engine.run([{"pred": prediction * 10, "label": (image, PREFIX)}])
    assert engine.run(batches).metrics["val_loss"] == first
