"""Reading checkpoints, converting published ones, and putting weights into a network without losing any silently."""

import logging
import math
import re
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digar.data.task import model_file
from digar.networks.models import Network
from digar.networks.transformer import Backbone

logger = logging.getLogger(__name__)
Weights = dict[str, Tensor]

WRAPPERS = ("state_dict", "model", "network")  # AR-SSL4M and MAE; MONAI Label and ignite; this bundle's training state
WRAPPER_PREFIXES = re.compile(r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# what torch.load raises on other files
UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, struct.error)
PUBLISHED_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
PUBLISHED_NAMES = {
    "self_attn.o_proj": "attention.out",
    "self_attn.dilated_attention.o_proj": "attention.dilated_out",
    "mlp.linear1": "mlp.0",
    "mlp.linear2": "mlp.2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "patchifier.proj": "patch_embedding",
    "norm": "norm",
}


def read_checkpoint(path: str | Path) -> Weights:
    """The state dict in a checkpoint file, wrappers and their prefixes taken off; only tensors are ever unpickled.

    Args:
        path: the file, or a model's folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not a checkpoint of weights.
    """
    path = model_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: train first, or name an existing file")
    refuse_damaged(path)
    content = load_tensors(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not named or not content:
        raise ValueError(f"{path} contains no state dict of tensors")
    return {WRAPPER_PREFIXES.sub("", name): tensor for name, tensor in content.items()}


def load_tensors(path: str | Path) -> Any:
    """What a file of ``torch.save`` holds: tensors, numbers, texts, lists and dicts of them; nothing else is loaded.

    Raises:
        ValueError: it holds anything else, or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:  # whose own text says how to switch the safety off, which no one should
        raise ValueError(f"{path} holds more than weights, or is damaged; only plain tensors are loaded") from None


def is_whole(path: str | Path) -> bool:
    """Whether every byte of a file of ``torch.save`` is what was written, by the checksums in it.

    ``torch.load`` does not look at them: a file cut short is an error of many kinds, one with a wrong block is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def refuse_damaged(path: str | Path) -> None:
    """Raise a ValueError for an archive of PyTorch whose checksums do not fit; other formats have none."""
    if zipfile.is_zipfile(path) and not is_whole(path):
        raise ValueError(f"{path} is damaged (a checksum in it does not fit): copy it again, or take another file")


def refuse_nonfinite(weights: Weights, path: str | Path) -> None:
    """Raise a ValueError that names the weights which hold NaN or infinite values."""
    broken = [name for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds NaN or infinite weights ({', '.join(broken)}): take another file")


def is_published(weights: Weights) -> bool:
    """Whether the names are those of AR-SSL4M or of AR-SSL4M-DEMO."""
    return any(name.endswith("self_attn.q_proj.weight") for name in weights)


def convert_published(weights: Weights) -> tuple[Weights, list[str]]:
    """AR-SSL4M's (or AR-SSL4M-DEMO's) weights under this bundle's names.

    Renames, joins q, k and v, takes start and end token from rows 1 and 2 of the token embedding (rows 0 and 3 are
    unused), and turns a stored gate share into its logit.

    Returns:
        The weights, ``backbone.*`` and ``head.*``, and a sentence for each thing that was left out.
    """
    converted: Weights = {}
    notes: list[str] = []
    qkv: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        inner = re.sub(r"^(?:model|vit)\.", "", name)
        layer = PUBLISHED_LAYER.fullmatch(inner)
        prefix, rest = (f"backbone.blocks.{layer[1]}.", layer[2]) if layer else ("backbone.", inner)
        stem, _, kind = rest.rpartition(".")
        projection = re.fullmatch(r"self_attn\.(dilated_attention\.)?([qkv])_proj", stem)
        if projection:
            target = f"{prefix}attention.{'dilated_qkv' if projection[1] else 'qkv'}.{kind}"
            qkv.setdefault(target, {})[projection[2]] = tensor
        elif rest == "self_attn.residual_gating.dilated_weight":
            converted[f"{prefix}attention.gate.logit"] = torch.logit(tensor.float()).reshape(1)
        elif rest == "self_attn.residual_gating.original_weight":
            pass  # one minus the dilated weight
        elif stem in PUBLISHED_NAMES:
            converted[f"{prefix}{PUBLISHED_NAMES[stem]}.{kind}"] = tensor
        elif rest == "embed_tokens.weight":
            converted["backbone.start_token"] = tensor[1].reshape(1, 1, -1)
            converted["backbone.end_token"] = tensor[2].reshape(1, 1, -1)
            notes.append("rows 0 and 3 of embed_tokens are unused and left out")
        elif rest == "pos_embed_learn":
            converted["backbone.position"] = tensor.reshape(-1, tensor.shape[-1])
        elif stem == "decoder_pred":
            converted[f"head.{kind}"] = tensor
        else:
            converted[f"head.{inner}"] = tensor  # UNETR's decoder keeps its names
    for target, parts in qkv.items():
        if set(parts) != {"q", "k", "v"}:
            raise ValueError(f"the checkpoint lacks a q, k or v projection for {target}: it has {sorted(parts)}")
        converted[target] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return converted, notes


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load all weights of a network from a file: each of them, none other, each of its shape.

    Args:
        network: as built; its weights are replaced.
        path: a checkpoint of this bundle, or of AR-SSL4M.

    Returns:
        The network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the missing, unexpected, wrongly shaped and non-finite weights; the network is then unchanged.
    """
    weights = read_checkpoint(path)
    if is_published(weights):
        weights, notes = convert_published(weights)
        if "backbone.end_token" not in network.state_dict():
            weights.pop("backbone.end_token", None)  # published encoders store it, and never use it
            notes.append("the end token is left out: this network has none")
        logger.info("%s is a published checkpoint: %s", path, "; ".join(notes))
    _refuse_misfits(network.state_dict(), weights, path)
    refuse_nonfinite(weights, path)
    network.load_state_dict(weights)
    return network


def load_pretrained(network: Network, path: str | Path | None, inherit_gate: bool = False) -> str:
    """Start a network's backbone from pretrained weights; its head stays as it was built.

    Args:
        network: a segmentation or classification network.
        path: a pretraining checkpoint of this bundle or of AR-SSL4M; None leaves the network as it was built.
        inherit_gate: take the pretrained gate shares; otherwise the gates start at the network's own ``gate_init``.

    Returns:
        A sentence that says what was loaded, what was left out and what starts anew.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the backbone's missing, unexpected, wrongly shaped and non-finite weights.
    """
    if path is None:
        logger.info("all weights start anew (no pretrained weights are given)")
        return "from scratch"
    weights = read_checkpoint(path)
    weights, notes = convert_published(weights) if is_published(weights) else (weights, [])
    backbone = network.backbone
    own = backbone.state_dict()
    given = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    if not given:
        raise ValueError(f"{path} contains no backbone: its weights begin with {', '.join(list(weights)[:3])}")
    if "end_token" in given and "end_token" not in own:
        given.pop("end_token")
        notes.append("the end token is left out")
    gates = [name for name in own if name.endswith("gate.logit")]
    if not inherit_gate or not any(name in given for name in gates):
        given = {name: t for name, t in given.items() if not name.endswith("gate.logit")}
        given.update({name: own[name] for name in gates})
        if gates:
            notes.append(f"{len(gates)} gates start at the network's own gate_init")
    if "position" in given and "position" in own and given["position"].shape != own["position"].shape:
        given["position"] = _fit_position(given["position"], backbone, path)
    _refuse_misfits(own, given, path)
    refuse_nonfinite(given, path)
    backbone.load_state_dict(given)
    heads = sum(name.startswith("head.") for name in weights)
    notes.append(f"{heads} weights of the checkpoint's head are left out, this network's head starts anew")
    report = f"{len(given)} backbone weights start from {path}; " + "; ".join(notes)
    logger.info(report)
    return report


def _fit_position(position: Tensor, backbone: Backbone, path: str | Path) -> Tensor:
    """Learned positions for this backbone's grid, interpolated from a cubic grid where it is another."""
    ends = backbone.position.shape[0] - 1 - backbone.num_patches
    grid = [int(n) for n in backbone.grid_size]
    for source_ends in (1, 0):  # a pretraining checkpoint has a row for the end token
        patches = position[1 : len(position) - source_ends]
        if len(patches) == backbone.num_patches:
            fitted = patches
            break
        side = round(len(patches) ** (1 / 3))
        if side**3 == len(patches):
            volume = patches.T.reshape(1, -1, side, side, side)
            fitted = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)[0].flatten(1).T
            logger.warning("%s: learned positions of a %d^3 grid are interpolated to %s", path, side, grid)
            break
    else:
        raise ValueError(
            f"{path}: {len(position)} learned positions belong neither to this network's grid {grid} nor to a cubic "
            "one, so they cannot be interpolated; build the network with the grid of the checkpoint"
        )
    last = position[-1:] if ends else position[:0]
    return torch.cat([position[:1], fitted, last])


def _refuse_misfits(own: Weights, given: Weights, path: str | Path) -> None:
    """Raise a ValueError that names every weight which is missing, unexpected or of another shape."""
    problems = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{path} does not fit the network ({'; '.join(found)}); build the network with the checkpoint's sizes, "
            "attention mode, projections and position, or name another checkpoint"
        )


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(math.prod(p.shape) for p in module.parameters() if p.requires_grad)
