"""The three networks: one backbone, a head each for pretraining, segmentation and classification."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from digar.networks.heads import LightHead, UnetrHead
from digar.networks.transformer import Backbone, axes

SEGMENTATION_HEADS = ("light", "unetr")


class PretrainingNetwork(nn.Module):
    """Predicts at every position the pixels of the next patch (AR-SSL4M, section 3).

    Args:
        image_size, patch_size, in_channels, backbone: see :class:`Backbone`; the end token is always there.

    Example:
        >>> import torch
        >>> network = PretrainingNetwork(16, 8, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2})
        >>> network(torch.zeros(1, 1, 16, 16, 16), prefix=torch.tensor([3])).shape
        torch.Size([1, 10, 512])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int = 1,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(image_size, patch_size, in_channels, end_token=True, **backbone)
        pixels = in_channels * math.prod(axes(patch_size, "patch_size"))
        self.head = nn.Linear(self.backbone.hidden_size, pixels)

    def forward(self, image: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``(B, C, X, Y, Z)`` and prefix lengths ``(B,)`` to predicted pixels ``(B, N + 2, C*p*q*r)``.

        Position i (0 is the start token) predicts the patch at position i + 1.
        """
        return self.head(self.backbone(image, prefix)[-1])


class SegmentationNetwork(nn.Module):
    """A class for every voxel.

    Args:
        image_size, patch_size, in_channels, dropout, backbone: see :class:`Backbone`.
        out_channels: classes, background included.
        head: ``light`` or ``unetr``.
        feature_size: the head's channels at full resolution.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown head.

    Example:
        >>> import torch
        >>> size = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
        >>> network = SegmentationNetwork(16, 4, out_channels=3, head="light", size=size)
        >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int = 1,
        out_channels: int = 2,
        head: str = "light",
        feature_size: int = 16,
        dropout: float = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if head not in SEGMENTATION_HEADS:
            raise ValueError(f"segmentation head {head!r} is unknown; the heads are {', '.join(SEGMENTATION_HEADS)}")
        self.backbone = Backbone(image_size, patch_size, in_channels, dropout=dropout, **backbone)
        sizes = (in_channels, out_channels, self.backbone.hidden_size, axes(patch_size, "patch_size"), feature_size)
        self.head = LightHead(*sizes) if head == "light" else UnetrHead(*sizes, num_layers=len(self.backbone.blocks))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, out_channels, X, Y, Z)``."""
        skips = self.head.stem(image)
        hidden = self.backbone(image, None, self.head.token_offset(skips))
        return self.head([self.backbone.token_map(tokens) for tokens in hidden], skips)


class ClassificationNetwork(nn.Module):
    """A class for every volume: the mean over the patch tokens, then a linear layer.

    Args:
        image_size, patch_size, in_channels, dropout, backbone: see :class:`Backbone`.
        num_classes: classes.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int = 1,
        num_classes: int = 2,
        dropout: float = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(image_size, patch_size, in_channels, dropout=dropout, **backbone)
        self.head = nn.Linear(self.backbone.hidden_size, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, num_classes)``."""
        return self.head(self.backbone.patches_only(self.backbone(image)[-1]).mean(dim=1))
