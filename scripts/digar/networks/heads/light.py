"""The light segmentation head: a convolution pyramid beside the transformer, joined in a small decoder.

A pyramid sees across patch borders and would leak targets in next-patch pretraining. There the tokens come from the
patch embedding alone; here the pyramid feeds the decoder's skips. Its last level is added to the tokens, and the tokens
to that level behind the last layer, both through projections that start at zero: pretrained layers start from what they
know, and the convolutions are not disturbed by tokens that have learned nothing yet.
"""

from collections.abc import Sequence

from monai.networks.blocks import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from digar.networks.heads.strides import doublings, stage_strides


class LightHead(nn.Module):
    """Pyramid of ``log2(patch)`` strided stages; the tokens are added to its last level, the others are skips.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        hidden_size: width of a token.
        patch_size: powers of two.
        feature_size: channels at full resolution; doubled per level.

    Raises:
        ValueError: a side of the patch is not a power of two.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        patch_size: Sequence[int],
        feature_size: int,
    ) -> None:
        super().__init__()
        strides = stage_strides(patch_size, max(doublings(patch_size)))
        widths = [feature_size * 2**level for level in range(len(strides) + 1)]
        self.pyramid = nn.ModuleList([self._convolutions(in_channels, widths[0], (1, 1, 1))])
        self.decoder = nn.ModuleList()
        for fine, coarse, stride in zip(widths, widths[1:], strides, strict=False):
            self.pyramid.append(self._convolutions(fine, coarse, stride))
            self.decoder.insert(0, self._upsampling(coarse, fine, stride))
        self.to_tokens = nn.Conv3d(widths[-1], hidden_size, kernel_size=1)
        self.from_tokens = nn.Conv3d(hidden_size, widths[-1], kernel_size=1)
        for projection in (self.to_tokens, self.from_tokens):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.join = self._convolutions(widths[-1], widths[-1], (1, 1, 1))
        self.out = UnetOutBlock(3, widths[0], out_channels)

    @staticmethod
    def _convolutions(in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> nn.Module:
        norm = ("instance", {"affine": True})
        return UnetBasicBlock(3, in_channels, out_channels, kernel_size=3, stride=stride, norm_name=norm)

    @staticmethod
    def _upsampling(in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> nn.Module:
        norm = ("instance", {"affine": True})
        return UnetUpBlock(
            3, in_channels, out_channels, kernel_size=3, stride=1, upsample_kernel_size=stride, norm_name=norm
        )

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
