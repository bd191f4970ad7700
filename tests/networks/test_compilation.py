"""Compiled blocks compute what they compute uncompiled; without a compiler nothing changes and the log says so."""

import logging
import shutil

import pytest
import torch
from digar.networks import PretrainingNetwork
from digar.networks.compilation import COMPILERS, compile_blocks

IMAGE, PREFIX = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4])


def build(**arguments) -> PretrainingNetwork:
    torch.manual_seed(0)
    size = {"hidden_size": 12, "num_layers": 2, "num_heads": 2}
    return PretrainingNetwork(8, 2, size=size, attention="local+grid", **arguments)


def step(network: PretrainingNetwork) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    result = network(IMAGE, PREFIX)
    result.square().sum().backward()
    return result.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in COMPILERS), reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_compiled_blocks_compute_the_same_with_gradients_under_the_same_names(checkpointing):
    plain, compiled = build(), build(checkpointing=checkpointing)
    assert compile_blocks(compiled, True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(step(compiled), step(plain), rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_network_stays_as_it_is_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    network = build()
    with caplog.at_level(logging.WARNING):
        assert not compile_blocks(network, True)
    assert "blocks are not compiled: torch.compile needs a C++ compiler" in caplog.text
    assert all(block._compiled_call_impl is None for block in network.backbone.blocks)


@pytest.mark.parametrize("enabled", [None, False])
def test_on_a_cpu_blocks_are_compiled_only_where_asked(enabled):
    assert not compile_blocks(build(), enabled)


def test_compiled_blocks_refuse_cheap_checkpointing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(ValueError, match="set checkpointing to none or all"):
        compile_blocks(build(checkpointing="cheap"), True)
