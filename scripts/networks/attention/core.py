"""The one attention function that every mode calls, and the prefix-causal mask in the form it takes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, explicit_keys: int = 1024) -> Tensor:
    """Softmax attention, ``softmax(q k^T / sqrt(d) + bias) v``.

    Args:
        query: ``(B, heads, Q, d)``.
        key, value: ``(B, heads, K, d)``.
        bias: 0 where a query may attend and -inf where not, ``(B or 1, 1, Q, K)``; None attends everywhere.
        explicit_keys: for bfloat16 on a CPU and up to this many keys, plain matrix products replace PyTorch's fused
            kernel, whose backward is slow there; with more keys the gain shrinks and the score matrix takes memory
            (``benchmarks/attention.py`` shows both sides).

    Returns:
        ``(B, heads, Q, d)``.
    """
    if query.is_cpu and query.dtype == torch.bfloat16 and key.shape[-2] <= explicit_keys:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, Q, K)
        if bias is not None:
            scores = scores + bias
        return scores.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


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
