"""A peer of next-patch pretraining: the same backbone as a masked autoencoder.

Masked patches are zero in the image and marked by a learned vector added to their tokens; the backbone attends
everywhere, and a linear layer gives the pixels at each patch's own position (SimMIM: Xie et al., CVPR 2022, arXiv
2111.09886; masking 75 % as He et al., CVPR 2022). ``benchmarks/masked.yaml`` puts it in the place of the objective:

    python -m monai.bundle run pretraining --config_file "['configs/pretrain.yaml','benchmarks/masked.yaml']"

Data, crops, steps, rates and the loss on normalised pixels stay those of ``configs/pretrain.yaml``.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from digar.networks.patches import from_patches, to_patches
from digar.networks.settings import BackboneSettings, takes_fields_of
from digar.networks.transformer import Backbone
from digar.training.losses import NextPatchLoss, next_patch_target
from digar.training.losses.squared_error import PatchError
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor, nn


class VisiblePatchesd(MapTransform):
    """Set ``prefix`` to the number of patches that stay visible, the same in every sample.

    Args:
        keys: the sample, ``(C, X, Y, Z)``.
        patch_size: patch in voxels.
        masked_share: of the patches.
    """

    def __init__(self, keys: KeysCollection, patch_size: int, masked_share: float) -> None:
        super().__init__(keys)
        self.patch_size = patch_size
        self.masked_share = masked_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        num_patches = math.prod(n // self.patch_size for n in result[self.first_key(result)].shape[1:])
        result["prefix"] = torch.tensor(round(num_patches * (1 - self.masked_share)))
        return result


class MaskedAutoencoder(nn.Module):
    """Predicts the pixels of masked patches from the others.

    Args:
        fields: of :class:`BackboneSettings`.
    """

    @takes_fields_of(BackboneSettings)
    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.backbone = Backbone(settings)
        self.mask_token = nn.Parameter(torch.zeros(1, self.backbone.hidden_size, 1, 1, 1))
        self.head = nn.Linear(self.backbone.hidden_size, settings.in_channels * math.prod(settings.patch))
        self.masked = torch.empty(0)  # of the last call, (B, N): 1 where masked

    def forward(self, image: Tensor, visible: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` and the number of visible patches ``(B,)`` to pixels ``(B, N, C*p*q*r)``.

        In training the mask is drawn anew at each call; in evaluation it is always the same.
        """
        patches = to_patches(image, self.backbone.patch_size)
        generator = None if self.training else torch.Generator(image.device).manual_seed(0)
        scores = torch.rand(patches.shape[:2], device=image.device, generator=generator)
        self.masked = (scores.argsort(dim=1).argsort(dim=1) >= visible[:, None]).to(image.dtype)
        seen = from_patches(patches * (1 - self.masked[..., None]), image.shape[2:], self.backbone.patch_size)
        marks = self.mask_token * self.masked.reshape(-1, 1, *self.backbone.grid_size)
        return self.head(self.backbone.patches_only(self.backbone(seen, None, marks)[-1]))


class MaskedPatchLoss(NextPatchLoss):
    """Mean square error over the masked patches, pooled as :class:`NextPatchLoss` pools the predicted ones.

    Args:
        network: tells the mask of its last call.
        norm_pixel: normalise each patch.
    """

    def __init__(self, network: MaskedAutoencoder, norm_pixel: bool = True) -> None:
        super().__init__(network.backbone.patch_size, norm_pixel)
        self.network = network

    def error_and_count(self, prediction: Tensor, target: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        patches = next_patch_target(target[0], self.patch_size, self.norm_pixel)
        masked = self.network.masked
        error = PatchError.apply(prediction, patches) * masked
        # the visible ones first, where readers of this attribute look for the prefix
        self.patch_error = error.detach().gather(1, masked.argsort(dim=1))
        return error.sum(), masked.sum()
