"""What stands on the backbone in segmentation. To add a head: a class in a file, and a line here."""

from collections.abc import Callable

from digar.networks.heads.head import HeadSizes, SegmentationHead
from digar.networks.heads.light import LightHead
from digar.networks.heads.unetr import UnetrHead

HEADS: dict[str, Callable[[HeadSizes], SegmentationHead]] = {"light": LightHead, "unetr": UnetrHead}

__all__ = ["HEADS", "HeadSizes", "LightHead", "SegmentationHead", "UnetrHead"]
