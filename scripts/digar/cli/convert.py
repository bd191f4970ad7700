"""Convert a checkpoint of AR-SSL4M, or of AR-SSL4M-DEMO, to this bundle's names, and say what was done.

Fine-tuning takes published checkpoints directly too (``--pretrained CHECKPOINT``); the converted file is for looking
at, for sharing, and for the commands that want a raw state dict under ``models/``.
"""

from pathlib import Path

from digar.networks.weights import Weights, convert_published, is_published, read_checkpoint
from digar.training.checkpoints import save_atomically


def network_ids(weights: Weights) -> dict[str, str]:
    """The config ids that build the network of these weights, as far as weights tell (heads and crop do not show).

    Args:
        weights: converted, ``backbone.*``.

    Raises:
        ValueError: no patch embedding or no layer is among them.
    """
    embedding = weights.get("backbone.patch_embedding.weight")
    layers = {name.split(".")[2] for name in weights if name.startswith("backbone.blocks.")}
    if embedding is None or not layers:
        raise ValueError(f"no backbone: a patch embedding and layers are needed, got {', '.join(list(weights)[:3])}")
    hidden_size, in_channels, *patch = embedding.shape
    separate = any("dilated_qkv" in name for name in weights)
    heads = next((n for n in (12, 6) if hidden_size == 64 * n), None)
    ids = {
        "in_channels": str(in_channels),
        "patch_size": str(patch[0] if len(set(patch)) == 1 else list(patch)),
        "network_size": f"hidden_size {hidden_size}, num_layers {len(layers)}, num_heads {heads or 'not stored'}",
        "attention": "full+sequence, projections separate" if separate else "none, or any gated mode",
        "position": f"learned, {len(weights['backbone.position'])} rows"
        if "backbone.position" in weights
        else "sincos",
    }
    if (hidden_size, len(layers)) == (768, 12):
        ids["network_size"] = "base"
    return ids


def convert(checkpoint: str | Path, output: str | Path) -> list[str]:
    """Write the converted weights as a raw state dict, to a temporary name that is renamed.

    Args:
        checkpoint: published, wrapped or bare; only tensors are unpickled.
        output: the file to write.

    Returns:
        What was done, in sentences.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: the output exists.
        ValueError: the checkpoint holds other weights than published ones.
    """
    weights = read_checkpoint(checkpoint)
    if not is_published(weights):
        raise ValueError(
            f"{checkpoint} contains no weights of AR-SSL4M or of AR-SSL4M-DEMO: their layers are named "
            f"self_attn.q_proj, this file begins with {', '.join(list(weights)[:3])}"
        )
    if Path(output).exists():
        raise FileExistsError(f"{output} exists: name another output, or move it away")
    converted, notes = convert_published(weights)
    ids = network_ids(converted)
    save_atomically(converted, output)
    joined = sum(name.endswith("qkv.weight") for name in converted)
    parts = {part: sum(name.startswith(f"{part}.") for name in converted) for part in ("backbone", "head")}
    return [
        f"{len(weights)} tensors read from {checkpoint}, {len(converted)} written to {output}: "
        f"{parts['backbone']} of the backbone, {parts['head']} of the head",
        f"q, k and v of {joined} attention layers joined into one projection each",
        *notes,
        "the network they fit: " + "; ".join(f"{name} {value}" for name, value in ids.items()),
    ]
