"""Half precision: used where asked, chosen only where the hardware gains from it, never in the result."""

import pytest
import torch
from digar.networks.precision import PRECISIONS, PrecisionInferer, best_precision, training_precision
from torch import Tensor, nn


class Probe(nn.Module):
    """A convolution that remembers the type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 2, kernel_size=3, padding=1)
        self.computed_in: set[torch.dtype] = set()

    def forward(self, image: Tensor) -> Tensor:
        result = self.convolution(image)
        self.computed_in.add(result.dtype)
        return result


IMAGE = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_runs_in_the_precision_asked_for_and_the_result_is_float32(precision):
    probe = Probe()
    result = PrecisionInferer(precision)(IMAGE, probe)
    assert probe.computed_in == {getattr(torch, precision)}
    assert result.dtype == torch.float32
    assert result.shape == (1, 2, 6, 6, 6)


def test_float32_is_what_the_network_gives_alone():
    probe = Probe()
    assert torch.equal(PrecisionInferer("float32")(IMAGE, probe), probe(IMAGE))


def test_bfloat16_is_close_to_float32_and_not_equal():
    probe = Probe()
    half, full = (PrecisionInferer(precision)(IMAGE, probe) for precision in PRECISIONS)
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.02)
    assert not torch.equal(half, full)


def test_gradients_in_bfloat16_are_float32_and_finite():
    probe = Probe()
    PrecisionInferer("bfloat16")(IMAGE, probe).square().mean().backward()
    gradient = probe.convolution.weight.grad
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.any()


def test_further_arguments_reach_the_network():
    def add(image: Tensor, amount: Tensor) -> Tensor:
        return image + amount

    result = PrecisionInferer("float32")(IMAGE, add, torch.tensor(2.0))
    torch.testing.assert_close(result, IMAGE + 2)


def test_precision_outside_the_call_is_left_as_it_was():
    PrecisionInferer("bfloat16")(IMAGE, Probe())
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["float16", "half", ""])
def test_an_unknown_precision_is_refused_with_those_there_are(precision):
    with pytest.raises(ValueError, match=f"precision '{precision}' must be one of bfloat16, float32"):
        PrecisionInferer(precision)


# The choice


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=["name", "device"])
def test_the_best_precision_of_this_cpu_is_one_that_the_inferer_takes(device):
    assert PrecisionInferer(best_precision(device)).dtype in PRECISIONS.values()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "float32"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert best_precision("cpu") == expected


def test_a_cpu_that_cannot_be_asked_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert best_precision("cpu") == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((8, 6), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_a_gpu_computes_in_bfloat16_from_ampere_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_precision("cuda:0") == expected


@pytest.mark.parametrize(
    ("crop", "patch", "expected"),
    [
        ([40, 56, 40], 8, "bfloat16"),
        ([16, 24, 24], [8, 8, 8], "float32"),
        ([24, 16, 16], 8, "bfloat16"),
        ([96, 96, 8], [8, 8, 2], "bfloat16"),
    ],
)
def test_a_cpu_trains_crops_of_two_patches_in_float32(crop, patch, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert training_precision("cpu", crop, patch) == expected
    assert training_precision("cuda:0", crop, patch) == "bfloat16"
