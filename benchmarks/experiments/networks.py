"""Networks beside the bundle's: peers without a backbone of ours, the light head alone, a linear head."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from digar.networks.heads import HeadSizes, LightHead
from digar.networks.patches import from_patches
from digar.networks.settings import BackboneSettings, axes
from digar.networks.transformer import Backbone
from torch import Tensor, nn


class NoBackbone(nn.Module):
    """What the bundle's optimizer and curves ask of a backbone, where there is none: no blocks, no gates."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def gate_shares(self) -> list[float]:
        """None."""
        return []


class Peer(nn.Module):
    """A network of another kind, trained by the bundle's own config.

    Args:
        network: maps images to logits.
        multiple: each axis is zero-padded to a multiple of this, and the logits are cut back.
    """

    def __init__(self, network: nn.Module, multiple: int = 1) -> None:
        super().__init__()
        self.backbone = NoBackbone()
        self.network = network
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        x, y, z = image.shape[2:]
        missing = [-n % self.multiple for n in (x, y, z)]
        return self.network(F.pad(image, [0, missing[2], 0, missing[1], 0, missing[0]]))[..., :x, :y, :z]


class WithoutTransformer(nn.Module):
    """The light head alone: stem, join and decoder as they are, the token map zero. Wants :class:`Peer` around it."""

    def __init__(self, patch_size: int | Sequence[int], in_channels: int, out_channels: int, feature_size: int) -> None:
        super().__init__()
        self.head = LightHead(HeadSizes(in_channels, out_channels, 1, 0, axes(patch_size, "patch_size"), feature_size))

    def forward(self, image: Tensor) -> Tensor:
        skips = self.head.stem(image)
        return self.head([torch.zeros_like(skips[-1][:, :1])], skips)


class LinearHead(nn.Module):
    """A linear layer gives every voxel of a patch its logits from the backbone's tokens: a head without a pyramid.

    Args:
        image_size, patch_size, backbone: see :class:`BackboneSettings`.
        out_channels: classes.
        layer: whose tokens are read, from 0; the last one's are normalised.
        frozen: train the linear layer alone, a probe of what the tokens hold.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        out_channels: int,
        layer: int = -1,
        frozen: bool = False,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(BackboneSettings(image_size, patch_size, **backbone)).requires_grad_(not frozen)
        self.layer = layer
        self.head = nn.Linear(self.backbone.hidden_size, out_channels * math.prod(self.backbone.patch_size))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.backbone.patches_only(self.backbone(image)[self.layer])
        return from_patches(self.head(tokens), image.shape[2:], self.backbone.patch_size)
