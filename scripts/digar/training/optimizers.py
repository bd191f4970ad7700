"""AdamW's parameter groups: layer-wise decay of the rate, the gates' own rate, no weight decay where it harms."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from monai.handlers import CheckpointLoader
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from digar.networks.models import Network
from digar.networks.weights import read_checkpoint

logger = logging.getLogger(__name__)


def layer_of(name: str, num_layers: int) -> int:
    """Depth of a weight: 0 for embeddings and positions, 1..L for the blocks, L + 1 for norm and head."""
    block = re.match(r"backbone\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    embeds = name.startswith(("backbone.patch_embedding", "backbone.start_token", "backbone.end_token"))
    return 0 if embeds or name == "backbone.position" else num_layers + 1


def parameter_groups(
    network: Network, learning_rate: float, weight_decay: float, layer_decay: float, gate_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups with their rates; ``gates`` marks that of the gates.

    The rate of a layer is ``learning_rate * layer_decay ** (L + 1 - depth)``, so that a pretrained network changes
    least where it reads the image. Gate logits get ``learning_rate * gate_rate``, no layer decay and no weight decay:
    at the base rate they would stay where they start, and weight decay would pull the share to one half. Biases,
    norms, tokens and positions have no weight decay.

    Args:
        network: a network of this bundle.
        learning_rate: of the head.
        weight_decay: of matrices and convolutions.
        layer_decay: factor per layer, 1 for none.
        gate_rate: the gates' factor.
    """
    num_layers = len(network.backbone.blocks)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if name.endswith("gate.logit"):
            settings = (learning_rate * gate_rate, 0.0, True)
        else:
            plain = parameter.ndim <= 1 or name.endswith(("_token", "position"))
            rate = learning_rate * layer_decay ** (num_layers + 1 - layer_of(name, num_layers))
            settings = (rate, 0.0 if plain else weight_decay, False)
        groups.setdefault(settings, []).append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": wd, "gates": gates} for (lr, wd, gates), p in groups.items()]


def build_adamw(
    network: Network,
    learning_rate: float,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    gate_rate: float = 100.0,
) -> torch.optim.AdamW:
    """Fused AdamW over :func:`parameter_groups`."""
    groups = parameter_groups(network, learning_rate, weight_decay, layer_decay, gate_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def slow_down_retraining(handlers: Sequence[Any], scheduler: LambdaLR, retraining_rate: float) -> None:
    """Scale the rates so that the head's becomes ``retraining_rate`` where a handler loads the network's weights.

    MONAI Label goes on from the present weights so, with the few cases that were drawn: at the rate for a network that
    starts anew it would unlearn all others in a few steps.

    Args:
        handlers: the trainer's.
        scheduler: of the optimizer that :func:`build_adamw` built.
        retraining_rate: takes the place of ``learning_rate``.
    """
    loaders = [handler for handler in handlers if isinstance(handler, CheckpointLoader)]
    if not loaders:
        return
    read_checkpoint(str(loaders[0].load_path))  # says what is wrong with the file, as MONAI's handler does not
    factor = retraining_rate / scheduler.optimizer.defaults["lr"]
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group in scheduler.optimizer.param_groups:
        group["lr"] *= factor
    logger.info(f"training goes on from {loaders[0].load_path}: the learning rate is {retraining_rate:g}")
