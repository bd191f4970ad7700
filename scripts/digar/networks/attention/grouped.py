"""D-Former's two scopes: attention inside interleaved sub-grids (``grid``) or contiguous windows (``local``).

Both cut the patch grid into ``r_x * r_y * r_z`` groups of equal size. A grid axis of ``n`` patches and dilation ``r``
is read as ``(n / r, r)`` for ``grid``, so that a group takes every r-th patch, and as ``(r, n / r)`` for ``local``, so
that a group is a run of neighbours. Scores per head: N^2 / (r_x r_y r_z); with groups of a fixed size, linear in N.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from digar.networks.attention.core import attend, prefix_causal_bias


class GroupedAttention(nn.Module):
    """Attention of every patch inside its own group; start and end tokens are keys of every group.

    As queries, start and end tokens attend every position that their mask allows.

    Args:
        grid_size: patches per axis ``(t, h, w)``.
        dilation: ``r`` per axis; must divide ``grid_size``.
        num_end: 1 if an end token stands after the patches, else 0. A start token always stands before them.
        interleaved: True for ``grid``, False for ``local``.
        slabs: along z, that come one after another in token order, raster within each; 1 is plain raster order. The
            groups are the same patches whatever the order.

    Shapes: query, key, value and the result are ``(B, heads, S, d)``, ``S = 1 + t*h*w + num_end``.

    Raises:
        ValueError: a grid axis is not a multiple of its dilation (grids are never padded).
    """

    def __init__(
        self, grid_size: Sequence[int], dilation: Sequence[int], num_end: int, interleaved: bool, slabs: int = 1
    ) -> None:
        super().__init__()
        if any(r < 1 or n % r for n, r in zip(grid_size, dilation, strict=True)):
            raise ValueError(
                f"patch grid {tuple(grid_size)} is not divisible by dilation {tuple(dilation)}: "
                "change the image size, the patch size or the dilation"
            )
        self.interleaved = interleaved
        self.num_patches = math.prod(grid_size)
        self.num_groups = math.prod(dilation)
        self.num_end = num_end
        self.slabs = slabs
        t, h, w = grid_size
        self.slab_shape = [slabs, t * h, w // slabs]
        split = [(n // r, r) if interleaved else (r, n // r) for n, r in zip(grid_size, dilation, strict=True)]
        self.split_shape = [size for pair in split for size in pair]  # the grid, each axis cut in two
        group_axes, inner_axes = ((1, 3, 5), (0, 2, 4)) if interleaved else ((0, 2, 4), (1, 3, 5))
        self.order = [*group_axes, *inner_axes]
        self.grouped_shape = [self.split_shape[axis] for axis in self.order]
        self.inverse_order = [self.order.index(axis) for axis in range(6)]
        group_length = self.num_patches // self.num_groups
        num_ends = 1 + num_end
        self.num_scores = self.num_patches * (group_length + num_ends) + num_ends * (self.num_patches + num_ends)

    def group(self, patches: Tensor) -> Tensor:
        """``(B, heads, N, d)`` in token order to ``(B * groups, heads, N / groups, d)``."""
        batch, heads, _, width = patches.shape
        if self.slabs > 1:  # to raster order
            patches = patches.reshape([batch, heads] + self.slab_shape + [width]).transpose(2, 3)
        split = patches.reshape([batch, heads] + self.split_shape + [width])
        axes = [0] + [axis + 2 for axis in self.order[:3]] + [1] + [axis + 2 for axis in self.order[3:]] + [8]
        return split.permute(axes).reshape(batch * self.num_groups, heads, -1, width)

    def ungroup(self, grouped: Tensor, batch: int) -> Tensor:
        """The inverse of :meth:`group`."""
        heads, width = grouped.shape[1], grouped.shape[3]
        split = grouped.reshape([batch] + self.grouped_shape[:3] + [heads] + self.grouped_shape[3:] + [width])
        split = split.permute(0, 4, 1, 2, 3, 5, 6, 7, 8)  # (B, heads, groups..., inner..., d)
        axes = [0, 1] + [axis + 2 for axis in self.inverse_order] + [8]
        patches = split.permute(axes).reshape(batch, heads, self.num_patches, width)
        if self.slabs > 1:  # to token order
            slabs, plane, depth = self.slab_shape
            patches = patches.reshape(batch, heads, plane, slabs, depth, width).transpose(2, 3).flatten(2, 4)
        return patches

    def with_ends(self, tokens: Tensor, grouped: Tensor) -> Tensor:
        """Start and end tokens joined to every group: ``(B * groups, heads, 1 + N / groups + num_end, d)``."""
        start = tokens[:, :, :1].repeat_interleave(self.num_groups, dim=0)
        if self.num_end == 0:
            return torch.cat([start, grouped], dim=2)
        return torch.cat([start, grouped, tokens[:, :, -1:].repeat_interleave(self.num_groups, dim=0)], dim=2)

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """Additive biases of the patches inside their groups, and of start and end tokens; ``prefix`` is ``(B,)``."""
        position = torch.arange(1 + self.num_patches + self.num_end, device=prefix.device)
        tokens = position[None, None, :, None]  # as (B, heads, S, d)
        queries = self.group(tokens[:, :, 1 : 1 + self.num_patches])  # (groups, 1, N / groups, 1)
        keys = self.with_ends(tokens, queries)
        ends = torch.cat([position[:1], position[1 + self.num_patches :]])[None]
        return [
            prefix_causal_bias(queries[:, 0, :, 0], keys[:, 0, :, 0], prefix, penalty, dtype),
            prefix_causal_bias(ends, position[None], prefix, penalty, dtype),
        ]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        group_bias = biases[0] if len(biases) > 0 else None
        end_bias = biases[1] if len(biases) > 0 else None
        last = 1 + self.num_patches
        grouped_key = self.with_ends(key, self.group(key[:, :, 1:last]))
        grouped_value = self.with_ends(value, self.group(value[:, :, 1:last]))
        patches = attend(self.group(query[:, :, 1:last]), grouped_key, grouped_value, group_bias)
        ends = attend(torch.cat([query[:, :, :1], query[:, :, last:]], dim=2), key, value, end_bias)
        return torch.cat([ends[:, :, :1], self.ungroup(patches, query.shape[0]), ends[:, :, 1:]], dim=2)
