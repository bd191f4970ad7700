"""What stands on the backbone in segmentation: UNETR's decoder, or the light one."""

from digar.networks.heads.light import LightHead
from digar.networks.heads.unetr import UnetrHead

__all__ = ["LightHead", "UnetrHead"]
