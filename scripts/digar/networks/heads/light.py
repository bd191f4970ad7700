"""The light segmentation head: a convolution pyramid beside the transformer, joined in a small decoder.

A pyramid sees across patch borders and would leak targets in next-patch pretraining. There the tokens come from the
patch embedding alone; here the pyramid feeds the decoder's skips. Its last level is added to the tokens, and the tokens
to that level behind the last layer, both through projections that start at zero: pretrained layers start from what they
know, and the convolutions are not disturbed by tokens that have learned nothing yet.
"""

from monai.networks.blocks import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from digar.networks.heads.head import HeadSizes
from digar.networks.heads.strides import Stride, doublings, level_kernels, stage_strides

NORM = ("instance", {"affine": True})


def _convolutions(in_channels: int, out_channels: int, kernel: Stride, stride: Stride) -> nn.Module:
    return UnetBasicBlock(3, in_channels, out_channels, kernel_size=kernel, stride=stride, norm_name=NORM)


def _upsampling(in_channels: int, out_channels: int, kernel: Stride, stride: Stride) -> nn.Module:
    return UnetUpBlock(
        3, in_channels, out_channels, kernel_size=kernel, stride=1, upsample_kernel_size=stride, norm_name=NORM
    )


class LightHead(nn.Module):
    """Pyramid of ``log2(patch)`` strided stages; the tokens are added to its last level, the others are skips.

    Channels double per level; where slices are thick, the fine levels' convolutions stay in plane (see
    :func:`level_kernels`). See :class:`SegmentationHead`.

    Raises:
        ValueError: a side of the patch is not a power of two.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        strides = stage_strides(sizes.patch_size, max(doublings(sizes.patch_size)))
        widths = [sizes.feature_size * 2**level for level in range(len(strides) + 1)]
        kernels = level_kernels(strides)
        self.pyramid = nn.ModuleList([_convolutions(sizes.in_channels, widths[0], kernels[0], (1, 1, 1))])
        self.decoder = nn.ModuleList()
        for level, stride in enumerate(strides):
            fine, coarse = widths[level : level + 2]
            self.pyramid.append(_convolutions(fine, coarse, kernels[level + 1], stride))
            self.decoder.insert(0, _upsampling(coarse, fine, kernels[level], stride))
        self.to_tokens = nn.Conv3d(widths[-1], sizes.hidden_size, kernel_size=1)
        self.from_tokens = nn.Conv3d(sizes.hidden_size, widths[-1], kernel_size=1)
        for weight in (*self.to_tokens.parameters(), *self.from_tokens.parameters()):
            nn.init.zeros_(weight)
        self.join = _convolutions(widths[-1], widths[-1], kernels[-1], (1, 1, 1))
        self.out = UnetOutBlock(3, widths[0], sizes.out_channels)

    def stem(self, image: Tensor) -> list[Tensor]:
        """Pyramid levels, full resolution first; the last one, ``(B, C, t, h, w)``, stands on the patch grid."""
        levels: list[Tensor] = []
        features = image
        for stage in self.pyramid:
            features = stage(features)
            levels.append(features)
        return levels

    def token_offset(self, skips: list[Tensor]) -> Tensor | None:
        """What the pyramid adds to the tokens, ``(B, hidden, t, h, w)``."""
        return self.to_tokens(skips[-1])

    def forward(self, token_maps: list[Tensor], skips: list[Tensor]) -> Tensor:
        """Logits ``(B, out_channels, X, Y, Z)`` from the last token map and the pyramid."""
        decoded = self.join(self.from_tokens(token_maps[-1]) + skips[-1])
        level = len(skips) - 2
        for stage in self.decoder:
            decoded = stage(decoded, skips[level])
            level -= 1
        return self.out(decoded)
