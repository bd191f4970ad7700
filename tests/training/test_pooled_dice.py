"""The segmentation loss is MONAI's, and of two processes together it is the loss of one."""

from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digar.training.distributed import stop_processes
from digar.training.losses import PooledDiceCELoss
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def make_batch(batch: int = 4) -> tuple[Tensor, Tensor]:
    """Features and labels; the halves hold very different shares of the classes, and one class is nowhere."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 2, 3, 4, 5, generator=generator)
    label = (torch.rand(batch, 1, 3, 4, 5, generator=generator) > 0.9).float()
    label[: batch // 2] *= 2
    return features, label


def make_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv3d(2, 4, 3, padding=1)


def test_on_one_process_it_is_monais():
    features, label = make_batch()
    ours, monais = make_network(), make_network()
    loss = PooledDiceCELoss()(ours(features), label)
    expected = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(monais(features), label)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours.weight.grad, monais.weight.grad, rtol=1e-5, atol=1e-7)


def train_on_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    features, label = (tensor[2 * rank : 2 * rank + 2] for tensor in make_batch())
    network = DistributedDataParallel(make_network())
    loss = PooledDiceCELoss()(network(features), label)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": network.module.weight.grad}, Path(folder) / f"rank{rank}.pt")
    stop_processes()


def test_two_processes_average_to_the_loss_and_gradient_of_one(monkeypatch):
    """As :func:`test_two_processes_compute_the_loss_and_gradient_of_one`, in one process that plays both."""
    features, label = make_batch()
    network = make_network()
    expected = PooledDiceCELoss()(network(features), label)
    (gradient,) = torch.autograd.grad(expected, network.weight)

    halves = [(features[half], label[half]) for half in (slice(0, 2), slice(2, 4))]
    sums = []
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_reduce", lambda tensor: sums.append(tensor.clone()) or tensor)
    alone = [PooledDiceCELoss()(network(part), truth).item() for part, truth in halves]
    monkeypatch.setattr(idist, "all_reduce", lambda tensor: tensor.copy_(sum(sums)))
    losses = [PooledDiceCELoss()(network(part), truth) for part, truth in halves]
    mean = sum(losses) / 2
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(mean, network.weight)[0], gradient, rtol=1e-5, atol=1e-7)
    assert abs(sum(alone) / 2 - expected.item()) > 1e-3  # so that a mean of the processes' own Dice would be seen


@pytest.mark.slow
def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path):
    mp.spawn(train_on_half, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    features, label = make_batch()
    network = make_network()
    loss = PooledDiceCELoss()(network(features), label)
    loss.backward()
    assert (results[0]["loss"] + results[1]["loss"]).item() / 2 == pytest.approx(loss.item(), rel=1e-6)
    for result in results:
        torch.testing.assert_close(result["gradient"], network.weight.grad, rtol=1e-5, atol=1e-7)
