"""Compiled transformer blocks (``torch.compile``) where that can be done."""

import importlib.util
import logging
import os
import shutil

import torch

from digar.networks.models import Network

COMPILERS = ("g++", "clang++", "cl")

logger = logging.getLogger(__name__)


def missing_compiler(device: torch.device) -> str | None:
    """What ``torch.compile`` lacks on this machine, in words; None where it lacks nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    names = (os.environ.get("CXX", ""), *COMPILERS)
    return None if any(shutil.which(name) for name in names if name) else f"a C++ compiler ({', '.join(COMPILERS)})"


def compile_blocks(network: Network, enabled: bool | None) -> bool:
    """Compile the blocks of the network's backbone in place: the names of its weights stay, DDP may wrap it.

    The first steps take longer by the compilation. Without a compiler the blocks stay as they are, and the log says so.

    Args:
        network: a network of this bundle, on its device.
        enabled: null means on a GPU; on a CPU the gain is small (``docs/results.md``).

    Returns:
        Whether the blocks will be compiled.

    Raises:
        ValueError: the backbone has ``checkpointing: cheap``, which compiled code chooses by itself.
    """
    device = next(network.parameters()).device
    if not (device.type == "cuda" if enabled is None else enabled):
        return False
    missing = missing_compiler(device)
    if missing is not None:
        logger.warning("blocks are not compiled: torch.compile needs %s, which this machine does not have", missing)
        return False
    if network.backbone.checkpointing == "cheap":
        raise ValueError("compiled blocks decide themselves what to recompute: set checkpointing to none or all")
    for block in network.backbone.blocks:
        block.compile()
    return True
