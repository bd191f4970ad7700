"""The published programs' outputs, reproduced from their weights.

The folder that ``DIGAR_GOLDEN`` names holds ``.npz`` files (weights, inputs, outputs, loss, gradients, config). Sizes,
gate shares and prefixes are read from each file, so that further files of these kinds need no change here.
"""

import ast
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from digar.networks import Backbone, BackboneSettings, PretrainingNetwork, SegmentationNetwork
from digar.networks.weights import convert_published, load_weights
from digar.training.losses import NextPatchLoss
from torch import nn

FOLDER = os.environ.get("DIGAR_GOLDEN")
FILES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []
pytestmark = pytest.mark.golden


class Encoder(nn.Module):
    """The backbone alone, under the name it has in every network."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.backbone = Backbone(BackboneSettings(**arguments))


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def published_weights(file: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("weight:"): torch.from_numpy(a) for name, a in file.items() if name.startswith("weight:")}


def network_arguments(config: dict) -> dict:
    dilated = bool(config.get("use_dilated"))
    return {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "size": {
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
        },
        "attention": "full+sequence" if dilated else "none",
        "projections": "separate" if dilated else "shared",
        "gate_learnable": False,
        "mask_penalty": 1.0 if dilated else math.inf,  # AR-SSL4M-DEMO adds its Boolean mask
        "position": "learned" if config["pos_type"] == "learnable" else "sincos",
    }


def unetr_arguments(text: str) -> dict:
    """``UNETR(1, 3, img 32^3, patch 16^3, feature_size=8) over encoder hidden 48, layers 12, heads 4``"""
    pattern = (
        r"UNETR\((\d+), (\d+), img (\d+)\^3, patch (\d+)\^3, feature_size=(\d+)\) "
        r"over encoder hidden (\d+), layers (\d+), heads (\d+)"
    )
    numbers = [int(n) for n in re.fullmatch(pattern, text.strip()).groups()]
    names = ("in_channels", "out_channels", "image_size", "patch_size", "feature_size")
    sizes = dict(zip(("hidden_size", "num_layers", "num_heads"), numbers[5:], strict=True))
    return {**dict(zip(names, numbers[:5], strict=True)), "size": sizes}


def save_published(file: dict[str, np.ndarray], folder: Path) -> Path:
    path = folder / "published.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in published_weights(file).items()}}, path)
    return path


def assert_close(actual: torch.Tensor, expected: np.ndarray, relative: float) -> None:
    """Largest error relative to the largest value."""
    reference = torch.from_numpy(expected)
    error = (actual.detach() - reference).abs().max() / reference.abs().max()
    assert error <= relative, f"relative error {error:.2e} is over {relative:.0e}"


def kind(file: dict[str, np.ndarray]) -> str:
    if "loss" in file:
        return "pretraining"
    return "unetr" if str(file["config"]).startswith("UNETR") else "encoder"


def cases(wanted: str) -> list:
    return [pytest.param(path, id=path.stem) for path in FILES if kind(arrays(path)) == wanted]


def test_the_golden_folder_is_not_empty() -> None:
    if FOLDER is None:
        pytest.skip("DIGAR_GOLDEN is unset: name the folder of golden .npz files to run these tests")
    assert FILES, f"DIGAR_GOLDEN names {FOLDER}, which contains no .npz file"
    assert sum(len(cases(k)) for k in ("pretraining", "encoder", "unetr")) == len(FILES)


@pytest.mark.parametrize("path", cases("pretraining"))
def test_pretraining_reproduces_logits_loss_and_gradients(path: Path, tmp_path: Path) -> None:
    file = arrays(path)
    config = ast.literal_eval(str(file["config"]))
    network = load_weights(PretrainingNetwork(**network_arguments(config)), save_published(file, tmp_path))
    share = config.get("pretrain_dilated_ratio")
    if share is not None:
        assert network.backbone.gate_shares() == pytest.approx([share] * config["num_hidden_layers"], rel=1e-5)
    image, prefix = torch.from_numpy(file["image"])[:, None], torch.from_numpy(file["prefix_length"])

    logits = network(image, prefix)
    loss = NextPatchLoss(config["patch_size"], norm_pixel=config["norm_pixel_loss"])(logits, (image, prefix))
    loss.backward()

    assert_close(logits, file["logits"], 1e-5)
    assert_close(loss, file["loss"], 1e-5)
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    expected = {name.removeprefix("grad:"): a for name, a in file.items() if name.startswith("grad:")}
    assert expected
    for name, gradient in expected.items():
        projection = re.search(r"\.([qkv])_proj\.", name)
        if projection:  # a third of the joined projection
            own = re.sub(r"^model\.layers\.(\d+)\.self_attn\.", r"backbone.blocks.\1.attention.", name)
            own = own.replace("dilated_attention.", "dilated_")
            own = re.sub(r"[qkv]_proj", "qkv", own)
            actual = gradients[own].chunk(3)["qkv".index(projection[1])]
        else:
            (own,) = convert_published({name: torch.from_numpy(gradient)})[0]
            actual = gradients[own]
        assert_close(actual, gradient, 1e-4)


@pytest.mark.parametrize("path", cases("encoder"))
def test_encoder_reproduces_every_hidden_state(path: Path, tmp_path: Path) -> None:
    file = arrays(path)
    encoder = load_weights(
        Encoder(**network_arguments(ast.literal_eval(str(file["config"])))), save_published(file, tmp_path)
    )
    hidden = encoder.backbone(torch.from_numpy(file["image"]))
    expected = sorted(name for name in file if name.startswith("hidden"))
    assert len(hidden) == len(expected)
    for tokens, name in zip(hidden, expected, strict=True):
        assert_close(encoder.backbone.patches_only(tokens), file[name], 1e-5)
    assert_close(encoder.backbone.patches_only(hidden[-1]), file["last"], 1e-5)


@pytest.mark.parametrize("path", cases("unetr"))
def test_unetr_reproduces_the_logits(path: Path, tmp_path: Path) -> None:
    file = arrays(path)
    arguments = unetr_arguments(str(file["config"]))
    network = SegmentationNetwork(**arguments, head="unetr")
    load_weights(network, save_published(file, tmp_path))
    assert_close(network(torch.from_numpy(file["image"])), file["logits"], 1e-5)
