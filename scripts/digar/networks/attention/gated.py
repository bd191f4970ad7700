"""The attention layer of a block: one mode, or an undilated and a dilated mode blended by a learned gate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.jit import Final

from digar.networks.attention.full import FullAttention
from digar.networks.attention.grouped import GroupedAttention
from digar.networks.attention.sequence import SequenceAttention

MODES = (
    "none",  # plain attention, as in AR-SSL4M
    "full+sequence",  # gated: full attention and the brief's dilation along the sequence
    "full+grid",  # gated: full attention and D-Former's global scope
    "local+sequence",
    "local+grid",  # gated: D-Former's two scopes; linear cost
    "local",  # ungated layers, to be used in turn as D-Former does
    "grid",
)


def branches(mode: str) -> list[str]:
    """The attention functions of a mode, undilated first: ``"full+grid"`` gives ``["full", "grid"]``.

    Raises:
        ValueError: the mode is not one of ``MODES``.
    """
    if mode not in MODES:
        raise ValueError(f"attention mode {mode!r} is unknown; the modes are {', '.join(MODES)}")
    return ["full"] if mode == "none" else mode.split("+")


def build_branch(
    name: str, grid_size: Sequence[int], dilation: Sequence[int], num_end: int, slabs: int = 1
) -> nn.Module:
    """One attention function over ``1 + t*h*w + num_end`` tokens; arguments as for :class:`GatedAttention`."""
    num_tokens = 1 + math.prod(grid_size) + num_end
    if name == "full":
        return FullAttention(num_tokens)
    if name == "sequence":
        if len(set(dilation)) > 1:
            raise ValueError(f"sequence attention has one dilation, not one per axis: {tuple(dilation)}")
        return SequenceAttention(num_tokens, dilation[0])
    return GroupedAttention(grid_size, dilation, num_end, interleaved=name == "grid", slabs=slabs)


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
        grid_size: patches per axis ``(t, h, w)``.
        dilation: r per axis.
        num_end: 1 if an end token stands after the patches, else 0.
        projections: ``shared``: both branches use one q-k-v and one output projection, so that the gate is the only
            weight beyond plain attention's; ``separate``: the dilated branch has its own, as in the brief's published
            code (kept to load its weights).
        gate_init, gate_learnable: see :class:`ResidualGate`.
        slabs: of the token order, see :class:`GroupedAttention`.

    Shapes: tokens and the result are ``(B, S, hidden)``, ``S = 1 + t*h*w + num_end``.
    """

    gated: Final[bool]  # constants, so that TorchScript leaves out what a mode lacks
    separate: Final[bool]

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mode: str,
        grid_size: Sequence[int],
        dilation: Sequence[int],
        num_end: int,
        projections: str = "shared",
        gate_init: float = 0.01,
        gate_learnable: bool = True,
        slabs: int = 1,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        if projections not in ("shared", "separate"):
            raise ValueError(f"projections must be 'shared' or 'separate', not {projections!r}")
        names = branches(mode)
        self.mode = mode
        self.num_heads = num_heads
        self.gated = len(names) == 2
        self.separate = self.gated and projections == "separate"
        self.branch = build_branch(names[0], grid_size, dilation, num_end, slabs)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size)
        if self.gated:
            self.dilated_branch = build_branch(names[1], grid_size, dilation, num_end, slabs)
            self.gate = ResidualGate(gate_init, gate_learnable)
        if self.separate:
            self.dilated_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
            self.dilated_out = nn.Linear(hidden_size, hidden_size)

    @property
    def num_scores(self) -> int:
        """Attention scores per head and sample, of both branches."""
        return self.branch.num_scores + (self.dilated_branch.num_scores if self.gated else 0)

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[list[Tensor]]:
        """The prefix-causal mask in the form each branch takes, one list per branch; ``prefix`` is ``(B,)``."""
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
