"""Recomputation keeps less for the backward pass and changes no value."""

import pytest
import torch
from digar.networks import PretrainingNetwork
from digar.networks.attention import MODES, core
from digar.networks.recomputation import CHECKPOINTING

IMAGE, PREFIX = torch.rand(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 90])


def step(checkpointing: str, attention: str, dtype: torch.dtype, dropout: float = 0.0) -> tuple:
    """Prediction, gradients, and the bytes kept for the backward pass beyond the weights."""
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_layers": 3, "num_heads": 2}
    network = PretrainingNetwork(
        (16, 8, 8), 2, size=size, attention=attention, checkpointing=checkpointing, dropout=dropout
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        prediction = network(IMAGE, PREFIX)
    prediction.float().square().mean().backward()
    return prediction.detach(), [parameter.grad for parameter in network.parameters()], sum(kept.values())


@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", MODES)
def test_values_and_gradients_are_the_same_bit_by_bit(monkeypatch, attention, dtype, checkpointing):
    monkeypatch.setattr(core, "FEW_SCORES", 0)  # so that bfloat16 attends in pieces
    expected, actual = (step(name, attention, dtype)[:2] for name in ("none", checkpointing))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:])
def test_dropout_is_the_same_when_computed_anew(checkpointing):
    expected, actual = (step(name, "none", torch.float32, dropout=0.3)[:2] for name in ("none", checkpointing))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_all_keeps_less_than_none():
    none, everything = (step(name, "local+grid", torch.bfloat16)[2] for name in ("none", "all"))
    assert everything < 0.3 * none
