"""The three networks: one backbone, a head each for pretraining, segmentation and classification."""

import math
from dataclasses import KW_ONLY, dataclass

from torch import Tensor, nn

from digar.networks.heads import HEADS, HeadSizes
from digar.networks.settings import BackboneSettings, takes_fields_of
from digar.networks.transformer import Backbone


class PretrainingNetwork(nn.Module):
    """Predicts at every position the pixels of the next patch (AR-SSL4M, section 3).

    Args:
        fields: of :class:`BackboneSettings`; the end token is always there.

    Example:
        >>> import torch
        >>> network = PretrainingNetwork(16, 8, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2})
        >>> network(torch.zeros(1, 1, 16, 16, 16), prefix=torch.tensor([3])).shape
        torch.Size([1, 10, 512])
    """

    @takes_fields_of(BackboneSettings)
    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.backbone = Backbone(settings, end_token=True)
        self.head = nn.Linear(self.backbone.hidden_size, settings.in_channels * math.prod(settings.patch))

    def forward(self, image: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``(B, C, X, Y, Z)`` and prefix lengths ``(B,)`` to predicted pixels ``(B, N + 2, C*p*q*r)``.

        Position i (0 is the start token) predicts the patch at position i + 1.
        """
        return self.head(self.backbone(image, prefix)[-1])


@dataclass(frozen=True)
class SegmentationSettings(BackboneSettings):
    """What a segmentation network is built from, beside its backbone's settings.

    Args:
        out_channels: classes, background included.
        head: one of ``digar.networks.heads.HEADS``.
        feature_size: the head's channels at full resolution.
    """

    out_channels: int = 2
    _: KW_ONLY
    head: str = "light"
    feature_size: int = 16


class SegmentationNetwork(nn.Module):
    """A class for every voxel.

    Args:
        fields: of :class:`SegmentationSettings`.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown head.

    Example:
        >>> import torch
        >>> size = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
        >>> network = SegmentationNetwork(16, 4, out_channels=3, head="light", size=size)
        >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 3, 16, 16, 16])
    """

    @takes_fields_of(SegmentationSettings)
    def __init__(self, settings: SegmentationSettings) -> None:
        super().__init__()
        if settings.head not in HEADS:
            raise ValueError(f"segmentation head {settings.head!r} is unknown; the heads are {', '.join(HEADS)}")
        self.backbone = Backbone(settings)
        sizes = HeadSizes(
            settings.in_channels,
            settings.out_channels,
            self.backbone.hidden_size,
            len(self.backbone.blocks),
            settings.patch,
            settings.feature_size,
        )
        self.head = HEADS[settings.head](sizes)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, out_channels, X, Y, Z)``."""
        skips = self.head.stem(image)
        hidden = self.backbone(image, None, self.head.token_offset(skips))
        return self.head([self.backbone.token_map(tokens) for tokens in hidden], skips)


@dataclass(frozen=True)
class ClassificationSettings(BackboneSettings):
    """What a classification network is built from, beside its backbone's settings: the number of classes."""

    num_classes: int = 2


class ClassificationNetwork(nn.Module):
    """A class for every volume: the mean over the patch tokens, then a linear layer.

    Args:
        fields: of :class:`ClassificationSettings`.
    """

    @takes_fields_of(ClassificationSettings)
    def __init__(self, settings: ClassificationSettings) -> None:
        super().__init__()
        self.backbone = Backbone(settings)
        self.head = nn.Linear(self.backbone.hidden_size, settings.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, num_classes)``."""
        return self.head(self.backbone.patches_only(self.backbone(image)[-1]).mean(dim=1))


Network = PretrainingNetwork | SegmentationNetwork | ClassificationNetwork
