"""UNETR's decoder (Hatamizadeh et al., WACV 2022), the segmentation head of AR-SSL4M."""

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetResBlock
from monai.networks.blocks.dynunet_block import get_conv_layer
from torch import Tensor, nn

from digar.networks.heads.head import HeadSizes
from digar.networks.heads.strides import Stride, doublings, stage_strides

LEVELS = 4


def _upsample(in_channels: int, out_channels: int, stride: Stride) -> nn.Module:
    return get_conv_layer(
        3, in_channels, out_channels, kernel_size=stride, stride=stride, conv_only=True, is_transposed=True
    )


class SkipUpsampler(nn.Module):
    """Bring a token map to a finer level: a transposed convolution, then (transposed, residual block) per stage."""

    def __init__(self, in_channels: int, out_channels: int, strides: Sequence[Stride]) -> None:
        super().__init__()
        self.transp_conv_init = _upsample(in_channels, out_channels, strides[0])
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _upsample(out_channels, out_channels, stride),
                    UnetResBlock(3, out_channels, out_channels, kernel_size=3, stride=1, norm_name="instance"),
                )
                for stride in strides[1:]
            )
        )

    def forward(self, token_map: Tensor) -> Tensor:
        return self.blocks(self.transp_conv_init(token_map))


class Merge(nn.Module):
    """Upsample the deeper level, join the skip, one residual block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.transp_conv = _upsample(in_channels, out_channels, stride)
        self.conv_block = UnetResBlock(3, 2 * out_channels, out_channels, kernel_size=3, stride=1, norm_name="instance")

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.transp_conv(deeper), skip], dim=1))


class UnetrHead(nn.Module):
    """Four levels of skips, after depth x (1/3, 7/12, 5/6) layers and the last, decoded to the image's grid.

    Patches are powers of two up to 16. See :class:`SegmentationHead`.

    Raises:
        ValueError: a patch or a depth that the decoder cannot serve.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        depth = sizes.num_layers
        if depth < 4:
            raise ValueError(f"the UNETR head takes four skips and so at least 4 layers; the backbone has {depth}")
        self.skip_layers = [round(depth * part) - 1 for part in (1 / 3, 7 / 12, 5 / 6)]
        stages = min(max(doublings(sizes.patch_size)), LEVELS)
        # the levels that a small patch leaves over are those of the tokens: at full resolution they cost the most
        fine, half, quarter, eighth = stage_strides(sizes.patch_size, stages) + [(1, 1, 1)] * (LEVELS - stages)
        hidden_size, size = sizes.hidden_size, sizes.feature_size
        self.encoder1 = UnetrBasicBlock(
            3, sizes.in_channels, size, kernel_size=3, stride=1, norm_name="instance", res_block=True
        )
        self.encoder2 = SkipUpsampler(hidden_size, 2 * size, [eighth, quarter, half])
        self.encoder3 = SkipUpsampler(hidden_size, 4 * size, [eighth, quarter])
        self.encoder4 = SkipUpsampler(hidden_size, 8 * size, [eighth])
        self.decoder5 = Merge(hidden_size, 8 * size, eighth)
        self.decoder4 = Merge(8 * size, 4 * size, quarter)
        self.decoder3 = Merge(4 * size, 2 * size, half)
        self.decoder2 = Merge(2 * size, size, fine)
        self.out = UnetOutBlock(3, size, sizes.out_channels)

    def stem(self, image: Tensor) -> list[Tensor]:
        """Features of the image itself, ``[(B, feature_size, X, Y, Z)]``."""
        return [self.encoder1(image)]

    def token_offset(self, skips: list[Tensor]) -> Tensor | None:
        """The stem adds nothing to the tokens."""
        return None

    def forward(self, token_maps: list[Tensor], skips: list[Tensor]) -> Tensor:
        """Logits ``(B, out_channels, X, Y, Z)`` from the layers' token maps ``(B, hidden, t, h, w)`` and the stem."""
        first, second, third = self.skip_layers
        decoded = self.decoder5(token_maps[-1], self.encoder4(token_maps[third]))
        decoded = self.decoder4(decoded, self.encoder3(token_maps[second]))
        decoded = self.decoder3(decoded, self.encoder2(token_maps[first]))
        return self.out(self.decoder2(decoded, skips[0]))
