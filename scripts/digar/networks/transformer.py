"""The backbone: patch embedding, positions, pre-norm transformer blocks with dilated-gated attention.

It serves pretraining (prefix-causal mask, end token), fine-tuning and inference (attention everywhere) alike.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digar.networks.attention import GatedAttention
from digar.networks.checkpointing import CHECKPOINTING, run_block
from digar.networks.patches import slabs_in_turn, to_patches, token_permutation
from digar.networks.position import sincos_position

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 192, "num_layers": 6, "num_heads": 6},
    "small": {"hidden_size": 384, "num_layers": 12, "num_heads": 6},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
}


def resolve_size(size: str | dict[str, int]) -> dict[str, int]:
    """The numbers of a named size, or the given numbers themselves.

    Raises:
        ValueError: the name or a number is unknown, or a number is missing.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"network size {size!r} is unknown; the sizes are {', '.join(SIZES)}")
        return SIZES[size]
    if set(size) != set(SIZES["tiny"]):
        raise ValueError(f"a network size needs exactly {', '.join(SIZES['tiny'])}; got {', '.join(size)}")
    return dict(size)


def axes(value: int | Sequence[int], name: str) -> tuple[int, int, int]:
    """One number for all three axes, or one per axis, as three positive numbers."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(numbers) != 3 or any(n < 1 for n in numbers):
        raise ValueError(f"{name} must be one positive number or three, not {value}")
    return numbers


class Block(nn.Module):
    """Pre-norm transformer block: LayerNorm, attention, residual, LayerNorm, MLP (GELU, ratio 4), residual.

    Shapes: tokens and the result are ``(B, S, hidden)``.
    """

    def __init__(self, attention: GatedAttention, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, biases: list[list[Tensor]]) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), biases))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


class Backbone(nn.Module):
    """Vision transformer over the patches of a 3D volume.

    The sequence is a start token, the ``N = t*h*w`` patches in token order and, in pretraining, an end token:
    ``S = 1 + N`` or ``2 + N`` positions.

    Args:
        image_size: volume in voxels, ``(X, Y, Z)`` or one number.
        patch_size: patch in voxels, ``(p, q, r)`` or one number; must divide ``image_size``.
        in_channels: channels of the volume.
        size: a name in ``SIZES``, or ``{"hidden_size": ., "num_layers": ., "num_heads": .}``.
        attention: a mode (``digar.networks.attention.MODES``) for all layers, or a list of modes that the layers
            take in turn: ``["local", "grid"]`` alternates as D-Former does.
        dilation: r, one number or (not for ``sequence``) one per axis; for ``grid`` and ``local`` it must divide the
            patch grid.
        projections: ``shared`` or ``separate``, see :class:`GatedAttention`.
        gate_init: the dilated branch's share at the start, in (0, 1).
        gate_learnable: False keeps the share fixed.
        position: ``sincos`` (fixed) or ``learned``.
        end_token: True in pretraining.
        checkpointing: what the backward pass computes anew instead of keeping it, block by block: ``none``; ``cheap``,
            all but matrix products and attention (norms, GELU, casts, regrouping); ``all``, everything between a
            block's input and its output (Chen et al., Training deep nets with sublinear memory cost, 2016).
        dropout: probability in train mode, of the embedded sequence and after the attention and the MLP of each block.
        token_order: ``raster`` (last axis fastest), or ``volume``: four slabs along z one after another, raster within
            each; for pretraining. Groups of ``grid`` and ``local`` are the same patches in either.
        mask_penalty: what the score of a forbidden pair loses. The brief's published code adds its Boolean mask to the
            scores (1 where allowed, 0 where not), so that a forbidden pair loses 1 and nothing is hidden:
            ``mask_penalty=1`` computes what it computes. Not for training: the targets leak.

    Raises:
        ValueError: sizes that do not fit each other, with the numbers.

    Example:
        >>> import torch
        >>> backbone = Backbone(16, 8, size={"hidden_size": 24, "num_layers": 2, "num_heads": 2})
        >>> [tuple(tokens.shape) for tokens in backbone(torch.zeros(1, 1, 16, 16, 16))]
        [(1, 9, 24), (1, 9, 24)]
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int = 1,
        size: str | dict[str, int] = "base",
        attention: str | Sequence[str] = "none",
        dilation: int | Sequence[int] = 2,
        projections: str = "shared",
        gate_init: float = 0.01,
        gate_learnable: bool = True,
        position: str = "sincos",
        end_token: bool = False,
        dropout: float = 0.0,
        checkpointing: str = "none",
        token_order: str = "raster",
        mask_penalty: float = math.inf,
    ) -> None:
        super().__init__()
        sizes = resolve_size(size)
        hidden_size, num_layers, num_heads = sizes["hidden_size"], sizes["num_layers"], sizes["num_heads"]
        volume, patch = axes(image_size, "image_size"), axes(patch_size, "patch_size")
        if any(n % p for n, p in zip(volume, patch, strict=True)):
            raise ValueError(f"image_size {volume} is not divisible by patch_size {patch}")
        grid = tuple(n // p for n, p in zip(volume, patch, strict=True))
        modes = [attention] if isinstance(attention, str) else list(attention)
        if not modes or len(modes) > num_layers:
            raise ValueError(f"{len(modes)} attention modes are given for {num_layers} layers")
        if checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing {checkpointing!r} is unknown; there are {', '.join(CHECKPOINTING)}")
        if token_order != "raster" and not end_token:
            raise ValueError(f"token_order {token_order!r} is for pretraining; maps of tokens are in raster order")
        if position not in ("sincos", "learned"):
            raise ValueError(f"position must be 'sincos' or 'learned', not {position!r}")

        self.image_size = list(volume)
        self.patch_size = list(patch)
        self.grid_size = list(grid)
        self.in_channels = in_channels
        self.hidden_size = hidden_size
        self.num_patches = math.prod(grid)
        self.mask_penalty = float(mask_penalty)
        self.checkpointing = checkpointing

        self.slabs = slabs_in_turn(token_order, grid)
        order = token_permutation(grid, self.slabs)
        self.register_buffer("token_order", order, persistent=False)
        ends = torch.zeros(1, dtype=torch.long), torch.full((int(end_token),), 1 + self.num_patches)
        self.register_buffer("position_order", torch.cat([ends[0], 1 + order, ends[1]]), persistent=False)

        self.patch_embedding = nn.Conv3d(in_channels, hidden_size, kernel_size=patch, stride=patch)
        self.start_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.end_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if end_token else None
        num_tokens = 1 + self.num_patches + int(end_token)
        if position == "learned":
            self.position = nn.Parameter(torch.zeros(num_tokens, hidden_size))
            nn.init.trunc_normal_(self.position, std=0.02)
        else:
            table = torch.zeros(num_tokens, hidden_size)  # start and end tokens have position zero
            table[1 : 1 + self.num_patches] = sincos_position(grid, hidden_size)
            self.register_buffer("position", table, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                GatedAttention(
                    hidden_size,
                    num_heads,
                    modes[layer % len(modes)],
                    grid,
                    axes(dilation, "dilation"),
                    int(end_token),
                    projections,
                    gate_init,
                    gate_learnable,
                    self.slabs,
                ),
                hidden_size,
                dropout,
            )
            for layer in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.apply(_initialise)
        nn.init.normal_(self.start_token, std=0.02)
        if self.end_token is not None:
            nn.init.normal_(self.end_token, std=0.02)

    def forward(self, image: Tensor, prefix: Tensor | None = None, offset: Tensor | None = None) -> list[Tensor]:
        """Hidden states after every layer, the last one after the final norm.

        Args:
            image: ``(B, C, X, Y, Z)``.
            prefix: length P of each sample's bidirectional prefix, ``(B,)``, for the prefix-causal mask; None attends
                everywhere.
            offset: added to the patch tokens before the first layer, ``(B, hidden, t, h, w)``.

        Returns:
            ``num_layers`` tensors ``(B, S, hidden)``, start (and end) token included.

        Raises:
            ValueError: the image has another size or channel count than the backbone was built for.
        """
        expected = [self.in_channels] + self.image_size
        if list(image.shape[1:]) != expected:
            raise ValueError(f"image has channels and size {list(image.shape[1:])}, the network takes {expected}")
        # the strided convolution as the matrix product it is: for bfloat16 on a CPU, convolving takes 20 times as long
        weight = self.patch_embedding.weight.flatten(1)  # (hidden, C*p*q*r)
        patches = F.linear(to_patches(image, self.patch_size), weight, self.patch_embedding.bias)  # (B, N, hidden)
        compute_dtype = patches.dtype  # bfloat16 under autocast: the type of the queries
        if offset is not None:
            patches = patches + offset.flatten(2).transpose(1, 2)
        position = self.position
        if self.slabs > 1:
            patches, position = patches[:, self.token_order], position[self.position_order]
        sequence = [self.start_token.expand(image.shape[0], -1, -1).to(patches.dtype), patches]
        if self.end_token is not None:
            sequence.append(self.end_token.expand(image.shape[0], -1, -1).to(patches.dtype))
        tokens = self.dropout(torch.cat(sequence, dim=1) + position)  # (B, S, hidden)

        biases: dict[str, list[list[Tensor]]] = {}  # the mask, expanded once per mode
        if prefix is not None:
            for block in self.blocks:
                if block.attention.mode not in biases:
                    biases[block.attention.mode] = block.attention.biases(prefix, self.mask_penalty, compute_dtype)
        everywhere: list[list[Tensor]] = []
        hidden: list[Tensor] = []
        for block in self.blocks:
            bias = biases.get(block.attention.mode, everywhere)
            if torch.jit.is_scripting():
                tokens = block(tokens, bias)
            else:
                tokens = run_block(block, tokens, bias, self.checkpointing)
            hidden.append(tokens)
        hidden[-1] = self.norm(tokens)
        return hidden

    def patches_only(self, tokens: Tensor) -> Tensor:
        """The patch tokens of ``(B, S, hidden)``: ``(B, N, hidden)``."""
        return tokens[:, 1 : 1 + self.num_patches]

    def token_map(self, tokens: Tensor) -> Tensor:
        """The patch tokens of ``(B, S, hidden)`` as a volume ``(B, hidden, t, h, w)``."""
        return self.patches_only(tokens).transpose(1, 2).unflatten(2, self.grid_size)

    def gate_shares(self) -> list[float]:
        """The dilated branch's share of every gated layer, first to last."""
        return [block.attention.gate.share().item() for block in self.blocks if block.attention.gated]


def _initialise(module: nn.Module) -> None:
    """Linear layers as in the published program: normal of deviation 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
