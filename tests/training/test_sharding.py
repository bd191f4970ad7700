"""A sharded network trains as a whole one, and its states and weights are a whole one's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digar.networks import SegmentationNetwork
from digar.training.distributed import stop_processes
from digar.training.optimizers import build_adamw
from digar.training.sharding import WholeInValidation, restore, shard_network, whole, whole_state
from ignite.engine import Engine
from torch import nn

SIZE = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}


def make_network(seed: int = 0) -> SegmentationNetwork:
    torch.manual_seed(seed)
    network = SegmentationNetwork(8, 4, out_channels=3, head="light", attention="local+grid", size=SIZE)
    return network.double()  # so that no rounding shows


def batches(steps: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two crops a step, one for each of two processes."""
    generator = torch.Generator().manual_seed(1)
    drawn = [
        (
            torch.randn(2, 1, 8, 8, 8, generator=generator).double(),
            torch.randint(0, 3, (2, 8, 8, 8), generator=generator),
        )
        for _ in range(steps.stop)
    ]
    return drawn[steps.start :]


def train(
    network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int | None = None
) -> tuple[float, float]:
    """Loss and gradient norm of the last step; ``rank`` of two processes, or None for one with both crops."""
    for image, label in batches(steps):
        part = slice(None) if rank is None else slice(rank, rank + 1)
        loss = nn.functional.cross_entropy(network(image[part]), label[part])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = whole(nn.utils.clip_grad_norm_(network.parameters(), 0.5))
        optimizer.step()
    return loss.item(), norm.item()


def predict_with(network: nn.Module) -> Callable[[Engine, torch.Tensor], torch.Tensor]:
    return lambda engine, image: network(image)


def two_processes(rank: int, folder: str) -> None:
    """Train two steps, save, load what one process saved, train two more; then validate unequally."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = shard_network(make_network(), "float32")
    optimizer = build_adamw(network, 1e-3)
    shares = network.backbone.gate_shares()
    train(network, optimizer, range(2), rank)
    states = {"network": whole_state(network), "optimizer": whole_state(optimizer)}

    alone = torch.load(Path(folder) / "alone.pt", weights_only=True)
    network = shard_network(make_network(seed=5), "float32")
    optimizer = build_adamw(network, 1e-3)
    restore(network, alone["network"])
    restore(optimizer, alone["optimizer"])
    loss, norm = train(network, optimizer, range(2, 4), rank)
    loss = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(loss)

    evaluator = Engine(predict_with(network))
    WholeInValidation(network).attach(evaluator)
    for _ in range(2):  # the first process has three images, the second one
        with torch.no_grad():
            evaluator.run([torch.zeros(1, 1, 8, 8, 8).double()] * (3 - 2 * rank))
        train(network, optimizer, range(4, 5), rank)
    end = whole_state(network)
    if rank == 0:
        result = {"shares": shares, "states": states, "loss": loss.item() / 2, "norm": norm, "end": end}
        torch.save(result, Path(folder) / "sharded.pt")
    stop_processes()


@pytest.mark.slow
def test_two_processes_train_validate_save_and_go_on_as_one_does(tmp_path):
    network = make_network()
    optimizer = build_adamw(network, 1e-3)
    train(network, optimizer, range(2))
    alone = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(alone, tmp_path / "alone.pt")
    mp.spawn(two_processes, args=(str(tmp_path),), nprocs=2)

    sharded = torch.load(tmp_path / "sharded.pt", weights_only=True)
    assert sharded["shares"] == pytest.approx([0.01, 0.01])
    assert set(sharded["states"]["network"]) == set(alone["network"])
    for state in (sharded["states"]["network"], sharded["end"]):
        assert all(type(tensor) is torch.Tensor for tensor in state.values())
    moments = sharded["states"]["optimizer"]["state"]
    for number, own in alone["optimizer"]["state"].items():
        torch.testing.assert_close(moments[number]["exp_avg"], own["exp_avg"], rtol=1e-9, atol=1e-9)
        assert moments[number]["step"] == own["step"]

    loss, norm = train(network, optimizer, range(2, 4))
    assert sharded["loss"] == pytest.approx(loss, rel=1e-9)
    assert sharded["norm"] == pytest.approx(norm, rel=1e-9)
    for _ in range(2):
        train(network, optimizer, range(4, 5))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(sharded["end"][name], tensor, rtol=1e-6, atol=1e-9, msg=name)

    resumed = make_network(seed=6)  # in one process, from what two had saved
    optimizer = build_adamw(resumed, 1e-3)
    restore(resumed, sharded["states"]["network"])
    restore(optimizer, sharded["states"]["optimizer"])
    assert train(resumed, optimizer, range(2, 4)) == pytest.approx((loss, norm), rel=1e-9)


def test_groups_that_do_not_divide_the_processes_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    with pytest.raises(ValueError, match="--replicas 3 does not divide the 8 processes"):
        shard_network(make_network(), "float32", replicas=3)


def test_the_state_of_what_is_not_sharded_is_its_own():
    network = make_network()
    optimizer = build_adamw(network, 1e-3)
    train(network, optimizer, range(1))
    assert str(whole_state(optimizer)) == str(optimizer.state_dict())
    other = make_network(seed=3)
    restore(other, whole_state(network))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())
