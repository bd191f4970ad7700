"""The attention layer of a block: one mode, or an undilated and a dilated function blended by a learned gate."""

import math

import torch
from torch import Tensor, nn
from torch.jit import Final

from digar.networks.attention.branch import Branch, TokenLayout
from digar.networks.attention.modes import MODES, check_mode


class ResidualGate(nn.Module):
    """Blend two attention outputs by one learned share: ``share * dilated + (1 - share) * undilated``.

    The share is ``sigmoid(logit)`` and starts at ``init``, so 0.01 means one per cent, not sigmoid(0.01).

    Args:
        init: the dilated branch's share at the start, in (0, 1).
        learnable: False keeps the share fixed (the logit becomes a buffer).

    Raises:
        ValueError: ``init`` outside (0, 1).

    Shapes: dilated, undilated and the result are alike.
    """

    def __init__(self, init: float = 0.01, learnable: bool = True) -> None:
        super().__init__()
        if not 0 < init < 1:
            raise ValueError(f"gate_init {init} must lie strictly between 0 and 1: it is the dilated branch's share")
        logit = torch.full((1,), math.log(init / (1 - init)))
        if learnable:
            self.logit = nn.Parameter(logit)
        else:
            self.register_buffer("logit", logit)

    def share(self) -> Tensor:
        """The dilated branch's share now, ``(1,)``."""
        return self.logit.sigmoid()

    def forward(self, dilated: Tensor, undilated: Tensor) -> Tensor:
        return torch.lerp(undilated, dilated, self.share().to(dilated.dtype))


class GatedAttention(nn.Module):
    """Multi-head self-attention in one of ``MODES``, with its projections and its gate.

    Args:
        hidden_size: width of a token.
        num_heads: attention heads; must divide ``hidden_size``.
        mode: one of ``MODES``.
        layout: of the tokens.
        projections: ``shared``: both branches use one q-k-v and one output projection, so that the gate is the only
            weight beyond plain attention's; ``separate``: the dilated branch has its own, as in AR-SSL4M-DEMO
            (kept to load its weights).
        gate_init, gate_learnable: see :class:`ResidualGate`.

    Shapes: tokens and the result are ``(B, S, hidden)``.
    """

    gated: Final[bool]  # constants, so that TorchScript leaves out what a mode lacks
    separate: Final[bool]

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mode: str,
        layout: TokenLayout,
        projections: str = "shared",
        gate_init: float = 0.01,
        gate_learnable: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        if projections not in ("shared", "separate"):
            raise ValueError(f"projections must be 'shared' or 'separate', not {projections!r}")
        check_mode(mode)
        branches: list[Branch] = [build(layout) for build in MODES[mode]]
        self.mode = mode
        self.num_heads = num_heads
        self.num_scores = sum(branch.num_scores for branch in branches)  # per head and sample
        self.gated = len(branches) == 2
        self.separate = self.gated and projections == "separate"
        self.branch = branches[0]
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size)
        if self.gated:
            self.dilated_branch = branches[1]
            self.gate = ResidualGate(gate_init, gate_learnable)
        if self.separate:
            self.dilated_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
            self.dilated_out = nn.Linear(hidden_size, hidden_size)

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[list[Tensor]]:
        """The prefix-causal mask in the form each branch takes, one list per branch; see :class:`Branch`."""
        biases = [self.branch.biases(prefix, penalty, dtype)]
        if self.gated:
            biases.append(self.dilated_branch.biases(prefix, penalty, dtype))
        return biases

    def forward(self, tokens: Tensor, biases: list[list[Tensor]]) -> Tensor:
        query, key, value = self._heads(self.qkv(tokens))
        mixed = self._merge(self.branch(query, key, value, biases[0] if len(biases) > 0 else []))
        if self.gated:
            if self.separate:
                query, key, value = self._heads(self.dilated_qkv(tokens))
            dilated = self._merge(self.dilated_branch(query, key, value, biases[1] if len(biases) > 0 else []))
            if self.separate:
                return self.gate(self.dilated_out(dilated), self.out(mixed))
            mixed = self.gate(dilated, mixed)  # before the shared output projection: the same function, one product
        return self.out(mixed)

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, S, 3 * hidden)`` to three of ``(B, heads, S, d)``."""
        batch, length, _ = projected.shape
        query, key, value = projected.reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _merge(self, heads: Tensor) -> Tensor:
        """``(B, heads, S, d)`` to ``(B, S, hidden)``."""
        return heads.transpose(1, 2).flatten(2)
