"""Attention in bfloat16 on a CPU, a piece of the score matrix at a time.

There the backward pass of PyTorch's fused kernel is slow, and plain matrix products over all heads keep a score matrix
for the backward pass. Here a piece holds some heads' scores of some queries. It stays in the cache, leaves out the keys
that none of its queries may attend, and is computed anew in the backward pass: nothing but query, key and value is kept
(Dao et al., FlashAttention, 2022, for the recomputation).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 2**20  # scores in a piece: 2 MiB
QUERY_CUTS = 4  # a causal mask hides a quarter of the scores from so many pieces of the queries, on average
FEWEST_QUERIES = 64  # in a piece that is cut for the mask's sake

Piece = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]  # where in queries, and in keys and values


def rows_at_once(num_queries: int, num_keys: int, masked: bool, piece: int) -> int:
    """Queries in a piece: all where their scores fit and no mask makes it worth to cut them."""
    cuts = min(QUERY_CUTS, max(1, num_queries // FEWEST_QUERIES)) if masked else 1
    return min(-(-num_queries // cuts), max(1, piece // num_keys))


def cut(query: Tensor, key: Tensor, bias: Tensor | None, piece: int) -> Iterator[Piece]:
    """Pieces that cover all queries, in order of samples, heads and positions.

    Args:
        query: ``(B, heads, Q, d)``.
        key: ``(B, heads, K, d)``.
        bias: ``(B or 1, 1, Q, K)``, -inf where a query may not attend; None attends everywhere.
        piece: scores in a piece, at most (but at least those of a query of a head).
    """
    batch, heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    rows = rows_at_once(num_queries, num_keys, bias is not None, piece)
    heads_at_once = min(heads, max(1, piece // (rows * num_keys)))
    samples_at_once = max(1, piece // (heads * rows * num_keys))
    starts = range(0, num_queries, rows)
    ends = None if bias is None else torch.stack([last_key(bias[:, 0, row : row + rows]) for row in starts], 1).tolist()
    for sample in range(0, batch, samples_at_once):
        samples = slice(sample, sample + samples_at_once)
        for head in range(0, heads, heads_at_once):
            for index, row in enumerate(starts):
                if ends is None:
                    end = num_keys
                else:
                    end = max(sample_ends[index] for sample_ends in (ends[samples] if len(ends) > 1 else ends))
                some_heads = slice(head, head + heads_at_once)
                yield (samples, some_heads, slice(row, row + rows)), (samples, some_heads, slice(end))


def last_key(bias: Tensor) -> Tensor:
    """How many keys to take from the first on so that none is missed: ``(B, Q, K)`` to ``(B,)``, at least 1."""
    attended = (bias > -math.inf).any(dim=1)  # (B, K)
    return (attended * torch.arange(1, bias.shape[2] + 1)).amax(dim=1).clamp(min=1)


def probabilities(query: Tensor, key: Tensor, bias: Tensor | None, at_query: tuple, at_key: tuple) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias)`` of a piece."""
    scores = (query[at_query] * query.shape[-1] ** -0.5) @ key[at_key].mT
    if bias is not None:
        samples = at_query[0] if len(bias) > 1 else slice(None)
        scores += bias[samples, :, at_query[2], at_key[2]]
    return scores.softmax(-1)


@torch.library.custom_op("digar::attend_in_pieces", mutates_args=())
def attend_in_pieces(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, piece: int = PIECE) -> Tensor:
    """Softmax attention, ``softmax(q k^T / sqrt(d) + bias) v``; arguments and result as for ``core.attend``."""
    result = torch.empty_like(query)
    for at_query, at_key in cut(query, key, bias, piece):
        result[at_query] = probabilities(query, key, bias, at_query, at_key) @ value[at_key]
    return result


@torch.library.custom_op("digar::attend_in_pieces_backward", mutates_args=())
def attend_in_pieces_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, piece: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; sums over several pieces of the queries are float32."""
    scale = query.shape[-1] ** -0.5
    whole = rows_at_once(query.shape[2], key.shape[2], bias is not None, piece) == query.shape[2]
    sums, collect = (key.dtype, Tensor.copy_) if whole else (torch.float32, Tensor.add_)
    query_gradient = torch.empty_like(query)
    key_gradient, value_gradient = (torch.zeros_like(tensor, dtype=sums) for tensor in (key, value))
    for at_query, at_key in cut(query, key, bias, piece):
        weights = probabilities(query, key, bias, at_query, at_key)
        collect(value_gradient[at_key], weights.mT @ gradient[at_query])
        weights_gradient = gradient[at_query] @ value[at_key].mT
        scores_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
        query_gradient[at_query] = (scores_gradient @ key[at_key]) * scale
        collect(key_gradient[at_key], scores_gradient.mT @ (query[at_query] * scale))
    return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype)


@attend_in_pieces.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, piece: int = PIECE) -> Tensor:
    return torch.empty_like(query)


@attend_in_pieces_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, piece: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def keep_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Query, key, value and bias are all that the backward pass needs."""
    *tensors, ctx.piece = inputs
    ctx.save_for_backward(*tensors)


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_in_pieces_backward(gradient, *ctx.saved_tensors, ctx.piece), None, None


attend_in_pieces.register_autograd(differentiate, setup_context=keep_inputs)
