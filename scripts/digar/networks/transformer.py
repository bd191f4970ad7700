"""The backbone: patch embedding, positions, pre-norm transformer blocks with dilated-gated attention.

It serves pretraining (prefix-causal mask, end token), fine-tuning and inference (attention everywhere) alike.
"""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digar.networks.attention import GatedAttention
from digar.networks.patches import to_patches, token_permutation
from digar.networks.position import sincos_position
from digar.networks.recomputation import run_block
from digar.networks.settings import SIZE_NUMBERS, BackboneSettings


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
        settings: the numbers.
        end_token: True in pretraining.

    Raises:
        ValueError: sizes that do not fit each other, with the numbers.

    Example:
        >>> import torch
        >>> size = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
        >>> backbone = Backbone(BackboneSettings(16, 8, size=size))
        >>> [tuple(tokens.shape) for tokens in backbone(torch.zeros(1, 1, 16, 16, 16))]
        [(1, 9, 24), (1, 9, 24)]
    """

    token_order: Tensor
    position_order: Tensor
    position: Tensor

    def __init__(self, settings: BackboneSettings, end_token: bool = False) -> None:
        super().__init__()
        layout = settings.layout(end_token)
        hidden_size, num_layers, num_heads = (settings.numbers[name] for name in SIZE_NUMBERS)
        self.image_size = list(settings.volume)
        self.patch_size = list(settings.patch)
        self.grid_size = list(layout.grid_size)
        self.in_channels = settings.in_channels
        self.hidden_size = hidden_size
        self.num_patches = layout.num_patches
        self.mask_penalty = float(settings.mask_penalty)
        self.checkpointing = settings.checkpointing

        self.reordered = layout.parts > 1
        order = token_permutation(layout.grid_size, layout.parts)
        self.register_buffer("token_order", order, persistent=False)
        ends = torch.zeros(1, dtype=torch.long), torch.full((int(end_token),), 1 + self.num_patches)
        self.register_buffer("position_order", torch.cat([ends[0], 1 + order, ends[1]]), persistent=False)

        self.patch_embedding = nn.Conv3d(settings.in_channels, hidden_size, settings.patch, stride=settings.patch)
        self.start_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.end_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if end_token else None
        if settings.position == "learned":
            self.position = nn.Parameter(torch.zeros(layout.num_tokens, hidden_size))
            nn.init.trunc_normal_(self.position, std=0.02)
        else:
            table = torch.zeros(layout.num_tokens, hidden_size)  # start and end tokens have position zero
            table[1 : 1 + self.num_patches] = sincos_position(layout.grid_size, hidden_size)
            self.register_buffer("position", table, persistent=False)
        self.dropout = nn.Dropout(settings.dropout)
        gate = settings.projections, settings.gate_init, settings.gate_learnable
        modes = itertools.islice(itertools.cycle(settings.attention_modes), num_layers)
        blocks = (
            Block(GatedAttention(hidden_size, num_heads, mode, layout, *gate), hidden_size, settings.dropout)
            for mode in modes
        )
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
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
        if self.reordered:
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
        shares = [block.attention.gate.share() for block in self.blocks if block.attention.gated]
        # of a sharded network, each process has a part
        return [(share.full_tensor() if hasattr(share, "full_tensor") else share).item() for share in shares]


def _initialise(module: nn.Module) -> None:
    """Linear layers as in the published program: normal of deviation 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
