"""Half precision where the hardware gains from it: bfloat16 through the inferer, which serves every engine alike.

MONAI's engines enter autocast for CUDA only; an inferer that does works on a CPU too, in training and validation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def best_precision(device: str | torch.device) -> str:
    """``bfloat16`` where the device multiplies it faster than float32, else ``float32``.

    That is a CUDA device of compute capability 8.0 (Ampere) or later, or a CPU with AVX512-BF16 or AMX instructions.
    """
    if torch.device(device).type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return "bfloat16" if major >= 8 else "float32"
    # before PyTorch 2.12 a CPU cannot be asked by a public function; there the answer is the safe one
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return "bfloat16" if fast else "float32"


def training_precision(device: str | torch.device, crop: Sequence[int], patch: int | Sequence[int]) -> str:
    """The :func:`best_precision` whose gradients are right.

    On a CPU with AVX512-BF16, oneDNN 3.12 (in PyTorch 2.13) takes the gradient of a 3x3x3 convolution in bfloat16 from
    memory never written where a feature map is two voxels wide along its first axis; a crop of two patches along that
    axis makes such maps, and trains in ``float32`` there.

    Args:
        device: of the training.
        crop: in voxels.
        patch: edges in voxels.
    """
    narrow = crop[0] == 2 * ensure_tuple_rep(patch, len(crop))[0]
    return "float32" if narrow and torch.device(device).type == "cpu" else best_precision(device)


class PrecisionInferer(Inferer):
    """Run a network in the given precision; the result is float32.

    Args:
        precision: ``bfloat16`` or ``float32``.

    Raises:
        ValueError: another precision.
    """

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} must be one of {', '.join(PRECISIONS)}")
        self.dtype = PRECISIONS[precision]

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        enabled = self.dtype != torch.float32
        # weights are cast once for all calls; in training, where each is used once, the casts would only be kept
        cache = not torch.is_grad_enabled()
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=enabled, cache_enabled=cache):
            return network(inputs, *args, **kwargs).float()
