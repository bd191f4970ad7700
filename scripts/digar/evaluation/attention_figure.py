"""Where a position looks: the attention weights of a trained layer, one matrix per branch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from digar.networks.attention import Branch
from digar.networks.transformer import Backbone


@torch.no_grad()
def attention_weights(backbone: Backbone, image: Tensor, layer: int) -> Tensor:
    """How much every position takes from every other in a layer, mean over the heads.

    Args:
        backbone: with ``shared`` projections.
        image: ``(B, C, X, Y, Z)``, as the network takes it.
        layer: which block, from 0.

    Returns:
        ``(branches, B, S, S)``, the undilated branch first; row i sums to 1 and tells what position i takes, or to 0
        where a branch leaves it out. A gated layer's blend is ``share * weights[1] + (1 - share) * weights[0]``.
    """
    attention = backbone.blocks[layer].attention
    inputs: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    try:
        backbone(image)
    finally:
        hook.remove()
    projected = attention.qkv(inputs[0]).unflatten(2, (3, attention.num_heads, -1))  # (B, S, 3, heads, d)
    query, key, _ = projected.permute(2, 0, 3, 1, 4)
    branches = [attention.branch, attention.dilated_branch] if attention.gated else [attention.branch]
    return torch.stack([_weights(branch, query, key).mean(dim=1) for branch in branches])


def _weights(branch: Branch, query: Tensor, key: Tensor) -> Tensor:
    """The result for one-hot values is the weights themselves, ``(B, heads, S, S)``; d columns at a time."""
    batch, heads, length, width = query.shape
    padded = F.pad(torch.eye(length, dtype=query.dtype, device=query.device), (0, -length % width))
    columns = [
        branch(query, key, values.expand(batch, heads, length, width), []) for values in padded.split(width, dim=1)
    ]
    return torch.cat(columns, dim=-1)[..., :length]
