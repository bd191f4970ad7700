"""Activation checkpointing: memory of the backward pass against time."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

CHECKPOINTING = ("none", "cheap", "all")


def keep_products(context: Any, operator: Callable[..., Any], *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep the results of linear layers and of attention; compute everything else anew."""
    aten = torch.ops.aten
    expensive = (
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.digar.attend_in_pieces.default,
    )
    return CheckpointPolicy.MUST_SAVE if operator in expensive else CheckpointPolicy.PREFER_RECOMPUTE


def run_block(block: nn.Module, tokens: Tensor, biases: list[list[Tensor]], checkpointing: str) -> Tensor:
    """A block's result; ``checkpointing`` is one of ``CHECKPOINTING`` and changes no value."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        return block(tokens, biases)
    if checkpointing == "all":
        return checkpoint(block, tokens, biases, use_reentrant=False)
    contexts = functools.partial(create_selective_checkpoint_contexts, keep_products)
    return checkpoint(block, tokens, biases, use_reentrant=False, context_fn=contexts)
