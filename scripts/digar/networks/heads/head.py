"""What a segmentation head is: it reads the image beside the transformer, and makes logits of both."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class HeadSizes:
    """What a segmentation head is built from.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        hidden_size: width of a token.
        num_layers: of the backbone.
        patch_size: patch in voxels, ``(p, q, r)``.
        feature_size: channels at full resolution.
    """

    in_channels: int
    out_channels: int
    hidden_size: int
    num_layers: int
    patch_size: tuple[int, int, int]
    feature_size: int


class SegmentationHead(Protocol):
    """A module that is built from :class:`HeadSizes`; its three methods are called in this order."""

    def stem(self, image: Tensor) -> list[Tensor]:
        """Features of the image itself, ``(B, C, X, Y, Z)``, at any resolutions: the skips."""
        ...

    def token_offset(self, skips: list[Tensor]) -> Tensor | None:
        """What the skips add to the patch tokens before the first layer, ``(B, hidden, t, h, w)``, or nothing."""
        ...

    def __call__(self, token_maps: list[Tensor], skips: list[Tensor]) -> Tensor:
        """Logits ``(B, out_channels, X, Y, Z)`` from each layer's tokens, ``(B, hidden, t, h, w)``, and the skips."""
        ...
