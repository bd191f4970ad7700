"""Whatever decides a mask is in its description, and nothing that differs from one process to the next."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from digar.inference.windows import WindowInferer
from digar.networks.description import describe, settings_hash
from monai.transforms import Compose, Lambdad, ScaleIntensityRangePercentilesd
from torch import nn

from tests.conftest import ROOT


def scaled(factor: float) -> object:
    return lambda x: x * factor


def network(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Dropout(dropout))


BUILDERS = [
    lambda: 1, lambda: 2, lambda: 1.5, lambda: float("inf"), lambda: None, lambda: "a", lambda: [1, 2], lambda: [2, 1],
    lambda: {"a": 1, "b": 2}, lambda: {"a": 1, "b": 3}, lambda: {"x", "y", "z"}, lambda: Path("/a"),
    lambda: torch.float32, lambda: torch.bfloat16, lambda: np.arange(3), lambda: np.arange(3.0), lambda: b"a",
    lambda: torch.ones(3, dtype=torch.bfloat16), lambda: torch.tensor(1.0), lambda: WindowInferer, lambda: np.sum,
    lambda: scaled(1.0), lambda: scaled(2.0), lambda: lambda x: x + 1, lambda: partial(scaled, 2.0),
    lambda: partial(scaled, 3.0), lambda: SimpleNamespace(a=1), lambda: SimpleNamespace(a=2), lambda: "a b".split,
    lambda: WindowInferer((8, 8, 8)), lambda: WindowInferer((8, 8, 8), overlap=0.5),
    lambda: WindowInferer((8, 8, 8), mirroring=[0]), lambda: WindowInferer((8, 8, 8), foreground=0.1),
    lambda: WindowInferer((8, 8, 8), precision="bfloat16"),
    lambda: Compose([ScaleIntensityRangePercentilesd("image", 1, 99.9, 0, 1)]),
    lambda: Compose([ScaleIntensityRangePercentilesd("image", 2, 99.9, 0, 1)]),
    lambda: Compose([Lambdad("image", scaled(1.0))]), lambda: Compose([Lambdad("image", scaled(2.0))]),
    network, lambda: network(dropout=0.5), lambda: network(seed=1), lambda: nn.ModuleList([network(), network()]),
]  # fmt: skip


def test_alike_things_have_one_description_and_different_things_different_ones():
    described = [settings_hash({"": describe(build())}) for build in BUILDERS]
    assert described == [settings_hash({"": describe(build())}) for build in BUILDERS]
    twins = [(i, j) for i in range(len(described)) for j in range(i) if described[i] == described[j]]
    assert twins == []


def test_what_changes_no_result_is_left_out():
    inferer = WindowInferer((8, 8, 8), window_batch=1)
    inferer.threads = 99
    assert describe(inferer) == describe(WindowInferer((8, 8, 8), window_batch=4))
    module, other = network(), network().eval()
    module.register_forward_hook(print)
    assert describe(module) == describe(other)


def test_a_buffer_or_weight_that_differs_is_seen():
    module = network()
    before = describe(module)
    module[1].running_mean[0] = 3
    assert describe(module) != before


def test_a_thing_that_holds_itself_has_a_description():
    thing = SimpleNamespace(name="a")
    thing.parts = [thing]
    assert describe(thing) == {"class": "types.SimpleNamespace", "name": "a", "parts": ["itself"]}


@pytest.mark.slow
def test_other_processes_have_the_same_descriptions():
    code = (
        "from tests.networks.test_description import *; print([settings_hash({'': describe(b())}) for b in BUILDERS])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
