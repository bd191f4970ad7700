"""The next-patch objective is what plain loops compute, and several processes compute what one does."""

from pathlib import Path

import ignite.distributed as idist
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digar.training.distributed import stop_processes
from digar.training.losses import NextPatchLoss, count_predicted, next_patch_target, pooled_loss_metric
from digar.training.losses.squared_error import PatchError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.networks import reference

CASES = {
    "one-channel": (1, (4, 4, 4), (2, 2, 2)),
    "three-channels-anisotropic": (3, (4, 6, 2), (2, 3, 1)),
}
GEOMETRIES = [pytest.param(*case, id=name) for name, case in CASES.items()]
NORMALISATIONS = pytest.mark.parametrize("norm_pixel", [True, False], ids=["normalised", "raw"])


def make_image(channels: int, volume: tuple[int, ...], batch: int = 3) -> Tensor:
    """Patches of different brightness and contrast."""
    torch.manual_seed(0)
    ramp = torch.linspace(0.1, 2.0, volume[0]).reshape(1, 1, -1, 1, 1)
    return torch.randn(batch, channels, *volume) * ramp + 5 * ramp


def make_prediction(image: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    pixels = image.shape[1] * patch_size[0] * patch_size[1] * patch_size[2]
    num_patches = image[0].numel() // pixels
    return torch.randn(len(image), num_patches + 2, pixels)


@NORMALISATIONS
@pytest.mark.parametrize(("channels", "volume", "patch_size"), GEOMETRIES)
def test_targets_equal_the_loops(channels, volume, patch_size, norm_pixel):
    image = make_image(channels, volume)
    target = next_patch_target(image, patch_size, norm_pixel)
    expected = np.array([reference.next_patch_target(sample.numpy(), patch_size, norm_pixel) for sample in image])
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_normalised_patches_have_mean_0_and_unbiased_variance_1():
    target = next_patch_target(make_image(1, (8, 8, 8)), (4, 4, 4))
    torch.testing.assert_close(target.mean(-1), torch.zeros(3, 8), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.var(-1, unbiased=True), torch.ones(3, 8), rtol=0, atol=1e-4)


def test_a_constant_patch_becomes_zero_and_not_nan():
    assert torch.equal(next_patch_target(torch.full((1, 1, 4, 4, 4), 3.0), (2, 2, 2)), torch.zeros(1, 8, 8))


def test_integer_and_half_images_give_float32_targets():
    image = torch.arange(64).reshape(1, 1, 4, 4, 4)
    expected = next_patch_target(image.float(), (2, 2, 2))
    for dtype in (torch.int16, torch.bfloat16):
        target = next_patch_target(image.to(dtype), (2, 2, 2))
        assert target.dtype == torch.float32
        torch.testing.assert_close(target, expected)


@NORMALISATIONS
@pytest.mark.parametrize("prefix", [[0, 0, 0], [0, 3, 7], [7, 7, 7]], ids=["none", "mixed", "one-patch-left"])
@pytest.mark.parametrize(("channels", "volume", "patch_size"), GEOMETRIES)
def test_the_loss_equals_the_loops(channels, volume, patch_size, prefix, norm_pixel):
    image = make_image(channels, volume)
    prediction = make_prediction(image, patch_size)
    loss = NextPatchLoss(patch_size, norm_pixel)(prediction, (image, torch.tensor(prefix)))
    expected = reference.next_patch_loss(prediction.numpy(), image.numpy(), prefix, patch_size, norm_pixel)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@NORMALISATIONS
def test_in_volume_order_targets_and_loss_follow_the_slabs(norm_pixel):
    image, prefix = make_image(2, (4, 4, 8)), [0, 5, 31]
    raster = torch.tensor([reference.next_patch_target(sample.numpy(), (2, 2, 1), norm_pixel) for sample in image])
    order = [(x * 2 + y) * 8 + 2 * slab + z for slab in range(4) for x in range(2) for y in range(2) for z in range(2)]
    ordered = raster[:, order]
    target = next_patch_target(image, (2, 2, 1), norm_pixel, token_order="volume")
    torch.testing.assert_close(target, ordered.float(), rtol=1e-4, atol=1e-4)
    prediction = torch.randn(3, 34, 8)
    errors = [(prediction[b, i] - ordered[b, i]).square().mean() for b, p in enumerate(prefix) for i in range(p, 32)]
    loss_function = NextPatchLoss((2, 2, 1), norm_pixel, token_order="volume")
    loss = loss_function(prediction, (image, torch.tensor(prefix)))
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert loss_function.patch_error.shape == (3, 32)
    assert loss_function.patch_error.sum().item() == pytest.approx(torch.stack(errors).sum().item(), rel=1e-5)


def test_the_longest_prefix_leaves_the_last_patch_alone():
    image = make_image(1, (4, 4, 4), batch=1)
    prediction = make_prediction(image, (2, 2, 2)).requires_grad_()
    prefix = torch.tensor([7])
    loss = NextPatchLoss((2, 2, 2))(prediction, (image, prefix))
    loss.backward()
    with_gradient = [position for position in range(10) if prediction.grad[0, position].abs().max() > 0]
    assert with_gradient == [7]  # which predicts the patch at position 8, the last
    assert count_predicted(8, prefix) == 1
    last_patch = next_patch_target(image, (2, 2, 2))[0, 7]
    assert loss.item() == pytest.approx((prediction[0, 7] - last_patch).square().mean().item(), rel=1e-5)


def test_the_right_prediction_has_no_loss():
    image = make_image(2, (4, 4, 4))
    target = next_patch_target(image, (2, 2, 2))
    prediction = torch.cat([target, torch.full((3, 2, 16), 100.0)], dim=1)  # the last two positions predict nothing
    assert NextPatchLoss((2, 2, 2))(prediction, (image, torch.tensor([0, 2, 7]))).item() == 0


def test_the_mean_is_over_all_patches_of_the_batch_and_not_over_samples():
    image = torch.zeros(2, 1, 4, 4, 4)
    prediction = torch.zeros(2, 10, 8)
    prediction[0] = 1.0  # an error of 1 at each of this sample's 8 patches; the other sample has 2, without error
    loss = NextPatchLoss((2, 2, 2))(prediction, (image, torch.tensor([0, 6])))
    assert loss.item() == pytest.approx(8 / 10)
    assert count_predicted(8, torch.tensor([0, 6])) == 10


def test_a_bfloat16_prediction_gives_a_float32_loss():
    image = make_image(1, (4, 4, 4))
    prediction = make_prediction(image, (2, 2, 2)).bfloat16()
    target = (image, torch.tensor([0, 1, 2]))
    loss = NextPatchLoss((2, 2, 2))(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(NextPatchLoss((2, 2, 2))(prediction.float(), target).item(), rel=1e-6)


def pooled(batches: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The metric over batches of prediction, image and prefix."""
    metric = pooled_loss_metric(NextPatchLoss((2, 2, 2)))
    for prediction, image, prefix in batches:
        metric.update((prediction.detach(), (image, prefix)))
    return metric.compute()


def test_the_metric_over_batches_is_the_loss_over_all_of_them():
    batches = half_batches()
    prediction, image, prefix = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = reference.next_patch_loss(prediction.numpy(), image.numpy(), prefix.tolist(), (2, 2, 2), True)
    assert pooled(batches) == pytest.approx(expected, rel=1e-5)


# Several processes: the halves of the batch have 13 and 3 patches after their prefixes, so their means differ.

PREFIX = torch.tensor([0, 3, 6, 7])


def make_linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(8, 8)


def half_batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    image = make_image(1, (4, 4, 4), batch=4)
    features = make_prediction(image, (2, 2, 2))
    return [(features[half], image[half], PREFIX[half]) for half in (slice(0, 2), slice(2, 4))]


def train_on_half(rank: int, folder: str) -> None:
    """One process of two: loss and gradient of its half of the batch, as DistributedDataParallel leaves it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    features, image, prefix = half_batches()[rank]
    network = DistributedDataParallel(make_linear())
    prediction = network(features)
    loss = NextPatchLoss((2, 2, 2))(prediction, (image, prefix))
    loss.backward()
    result = {
        "loss": loss.detach(),
        "gradient": network.module.weight.grad,
        "metric": torch.tensor(pooled([(prediction, image, prefix)])),
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    stop_processes()


def test_two_processes_average_to_the_loss_of_one(monkeypatch):
    """As :func:`test_two_processes_compute_the_loss_and_gradient_of_one`, in one process that plays both."""
    batches = half_batches()
    features, image, prefix = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = NextPatchLoss((2, 2, 2))(features, (image, prefix)).item()
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    losses = []
    for (prediction, half, length), others in zip(batches, (3, 13), strict=True):
        monkeypatch.setattr(idist, "all_reduce", lambda count, others=others: count.add_(others))
        losses.append(NextPatchLoss((2, 2, 2))(prediction, (half, length)).item())
    assert sum(losses) / 2 == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path):
    mp.spawn(train_on_half, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    features, image, prefix = (torch.cat(parts) for parts in zip(*half_batches(), strict=True))
    network = make_linear()
    loss = NextPatchLoss((2, 2, 2))(network(features), (image, prefix))
    loss.backward()
    alone = [NextPatchLoss((2, 2, 2))(network(part), (half, length)).item() for part, half, length in half_batches()]
    assert abs(sum(alone) / 2 - loss.item()) > 1e-3  # so that averaging the processes' own means would be seen
    assert (results[0]["loss"] + results[1]["loss"]).item() / 2 == pytest.approx(loss.item(), rel=1e-6)
    for result in results:
        torch.testing.assert_close(result["gradient"], network.weight.grad, rtol=1e-6, atol=1e-6)
        assert result["metric"].item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_error_of_patches_and_its_gradient_are_those_of_plain_operations(dtype):
    torch.manual_seed(0)
    pixels, weight = torch.randn(2, 5, 8), torch.rand(2, 5)
    results = []
    for error in (PatchError.apply, lambda prediction, pixels: (prediction[:, :5] - pixels).square().mean(-1)):
        prediction = torch.arange(2 * 7 * 8).reshape(2, 7, 8).sin().to(dtype).requires_grad_()
        value = error(prediction, pixels)
        (value * weight).sum().backward()
        results.append((value.detach(), prediction.grad))
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected)
