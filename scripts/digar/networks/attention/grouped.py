"""D-Former's two scopes: attention inside interleaved sub-grids (``grid``) or contiguous windows (``local``).

Both cut the patch grid into ``r_x * r_y * r_z`` groups of equal size. A grid axis of ``n`` patches and dilation ``r``
is read as ``(n / r, r)`` for ``grid``, so that a group takes every r-th patch, and as ``(r, n / r)`` for ``local``, so
that a group is a run of neighbours. Scores per head: N^2 / (r_x r_y r_z); with groups of a fixed size, linear in N.
"""

import math

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from digar.networks.attention.branch import TokenLayout
from digar.networks.attention.core import attend, prefix_causal_bias


class GroupedAttention(nn.Module):
    """Attention of every patch inside its own group; start and end tokens are keys of every group. See :class:`Branch`.

    As queries, start and end tokens attend every position that their mask allows.

    Args:
        layout: of the tokens; the groups are the same patches whatever its order.
        grid: the three axes of the patch grid, each as the number of a group (``a``, ``b``, ``c``) and the place in it
            (``i``, ``j``, ``k``), the slower one first.

    Raises:
        ValueError: a grid axis is not a multiple of its dilation (grids are never padded).
    """

    def __init__(self, layout: TokenLayout, grid: str) -> None:
        super().__init__()
        if any(r < 1 or n % r for n, r in zip(layout.grid_size, layout.dilation, strict=True)):
            raise ValueError(
                f"patch grid {layout.grid_size} is not divisible by dilation {layout.dilation}: "
                "change the image size, the patch size or the dilation"
            )
        self.num_patches = layout.num_patches
        self.num_tokens = layout.num_tokens
        self.num_groups = math.prod(layout.dilation)
        num_ends = self.num_tokens - self.num_patches
        group_length = self.num_patches // self.num_groups
        self.num_scores = self.num_patches * (group_length + num_ends) + num_ends * self.num_tokens

        depth = layout.grid_size[2] // layout.parts
        order, raster = (f"batch heads {patches} d" for patches in ("(part plane depth)", "(plane part depth)"))
        ordered = {"part": layout.parts, "depth": depth, "plane": self.num_patches // (layout.parts * depth)}
        patches, grouped = f"batch heads ({grid}) d", "(batch a b c) heads (i j k) d"
        lengths = [n // r for n, r in zip(layout.grid_size, layout.dilation, strict=True)]
        sizes = dict(zip("abcijk", (*layout.dilation, *lengths), strict=True))
        self.group = nn.Sequential(  # (B, heads, N, d) to (B * groups, heads, N / groups, d)
            Rearrange(f"{order} -> {raster}", **ordered), Rearrange(f"{patches} -> {grouped}", **sizes)
        )
        self.ungroup = nn.Sequential(
            Rearrange(f"{grouped} -> {patches}", **sizes), Rearrange(f"{raster} -> {order}", **ordered)
        )

    def with_ends(self, tokens: Tensor, grouped: Tensor) -> Tensor:
        """Start and end tokens joined to every group: ``(B * groups, heads, N / groups + ends, d)``."""
        start, end = tokens[:, :, :1], tokens[:, :, 1 + self.num_patches :]
        everywhere = [ends.repeat_interleave(self.num_groups, dim=0) for ends in (start, end)]
        return torch.cat([everywhere[0], grouped, everywhere[1]], dim=2)

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """Additive biases of the patches inside their groups, and of start and end tokens."""
        position = torch.arange(self.num_tokens, device=prefix.device)
        tokens = position[None, None, :, None]  # as (B, heads, S, d)
        queries = self.group(tokens[:, :, 1 : 1 + self.num_patches])  # (groups, 1, N / groups, 1)
        keys = self.with_ends(tokens, queries)
        ends = torch.cat([position[:1], position[1 + self.num_patches :]])[None]
        return [
            prefix_causal_bias(queries[:, 0, :, 0], keys[:, 0, :, 0], prefix, penalty, dtype),
            prefix_causal_bias(ends, position[None], prefix, penalty, dtype),
        ]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        group_bias, end_bias = (biases[0], biases[1]) if len(biases) > 0 else (None, None)
        last = 1 + self.num_patches
        grouped_key = self.with_ends(key, self.group(key[:, :, 1:last]))
        grouped_value = self.with_ends(value, self.group(value[:, :, 1:last]))
        patches = self.ungroup(attend(self.group(query[:, :, 1:last]), grouped_key, grouped_value, group_bias))
        ends = attend(torch.cat([query[:, :, :1], query[:, :, last:]], dim=2), key, value, end_bias)
        return torch.cat([ends[:, :, :1], patches, ends[:, :, 1:]], dim=2)


class GridAttention(GroupedAttention):
    """D-Former's global scope: a group is every r-th patch of the grid, and spans the whole volume."""

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "i a j b k c")


class LocalAttention(GroupedAttention):
    """D-Former's local scope: a group is a window of neighbours."""

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "a i b j c k")
