"""What stands on the backbone in segmentation: UNETR's decoder, or the light one."""

from scripts.networks.heads.light import LightHead
from scripts.networks.heads.unetr import UnetrHead

__all__ = ["LightHead", "UnetrHead"]
