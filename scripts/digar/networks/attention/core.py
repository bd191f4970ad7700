"""The one attention function that every mode calls, and the prefix-causal mask in the form it takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from digar.networks.attention.pieces import attend_in_pieces

FEW_SCORES = 2**21  # of all samples and heads: 4 MiB


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, ``softmax(q k^T / sqrt(d) + bias) v``.

    PyTorch's fused kernel, except for bfloat16 on a CPU, where its backward is slow: there plain products while the
    scores are few, else :mod:`digar.networks.attention.pieces` (``benchmarks/attention.py`` shows all three). What is
    exported to TorchScript or ONNX has the kernel alone.

    Args:
        query: ``(B, heads, Q, d)``.
        key, value: ``(B, heads, K, d)``.
        bias: 0 where a query may attend and -inf where not, ``(B or 1, 1, Q, K)``; None attends everywhere.

    Returns:
        ``(B, heads, Q, d)``.
    """
    if torch.jit.is_scripting() or torch.jit.is_tracing() or not (query.is_cpu and query.dtype == torch.bfloat16):
        result = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    else:  # TorchScript leaves this out
        few = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] <= FEW_SCORES
        result = attend_at_once(query, key, value, bias) if few else attend_in_pieces(query, key, value, bias)
    return result


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The same as plain products of all heads; the scores are kept for the backward pass."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, Q, K)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1) @ value


def prefix_causal_bias(
    query_position: Tensor, key_position: Tensor, prefix: Tensor, penalty: float, dtype: torch.dtype
) -> Tensor:
    """The prefix-causal mask as an additive bias: position i may attend j when ``j <= i`` or ``j <= prefix``.

    Args:
        query_position: sequence position of each query in each group, ``(groups, Q)``; position 0 is the start token.
        key_position: sequence position of each key in each group, ``(groups, K)``.
        prefix: length P of the bidirectional prefix of each sample, ``(B,)``.
        penalty: what a forbidden score loses; ``inf`` hides it.
        dtype: floating type of the result, that of the queries.

    Returns:
        0 or ``-penalty``, ``(B * groups, 1, Q, K)``.
    """
    causal = key_position[:, None, :] <= query_position[:, :, None]  # (groups, Q, K)
    in_prefix = key_position <= prefix[:, None, None]  # (B, groups, K)
    allowed = causal[None] | in_prefix[:, :, None, :]  # (B, groups, Q, K)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill(allowed.logical_not(), -penalty).flatten(0, 1).unsqueeze(1)
