"""The numbers that make a backbone, checked against each other; networks take them as arguments, as configs name them.

A frozen dataclass holds them, so that they are written down, documented and checked once, whatever stands on the
backbone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Concatenate, ParamSpec, TypeVar

from digar.networks.attention import TokenLayout
from digar.networks.patches import parts_in_turn
from digar.networks.recomputation import CHECKPOINTING

SIZE_NUMBERS = ("hidden_size", "num_layers", "num_heads")
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 192, "num_layers": 6, "num_heads": 6},
    "small": {"hidden_size": 384, "num_layers": 12, "num_heads": 6},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
}
Axes = tuple[int, int, int]
Network = TypeVar("Network")
Settings = TypeVar("Settings")
Fields = ParamSpec("Fields")


def axes(value: int | Sequence[int], name: str) -> Axes:
    """One number for all three axes, or one per axis, as three positive numbers."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(numbers) != 3 or any(n < 1 for n in numbers):
        raise ValueError(f"{name} must be one positive number or three, not {value}")
    x, y, z = numbers
    return x, y, z


@dataclass(frozen=True)
class BackboneSettings:
    """What a backbone is built from.

    Args:
        image_size: volume in voxels, ``(X, Y, Z)`` or one number.
        patch_size: patch in voxels, ``(p, q, r)`` or one number; must divide ``image_size``.
        in_channels: channels of the volume.
        size: a name in ``SIZES``, or ``{"hidden_size": ., "num_layers": ., "num_heads": .}``.
        attention: a mode (``digar.networks.attention.MODES``) for all layers, or a list of modes that the layers
            take in turn: ``["local", "grid"]`` alternates as D-Former does.
        dilation: r, one number or (not for ``sequence``) one per axis; for ``grid`` and ``local`` it must divide the
            patch grid.
        projections: ``shared`` or ``separate``, see :class:`digar.networks.attention.GatedAttention`.
        gate_init: the dilated branch's share at the start, in (0, 1).
        gate_learnable: False keeps the share fixed.
        position: ``sincos`` (fixed) or ``learned``.
        dropout: probability in train mode, of the embedded sequence and after the attention and the MLP of each block.
        checkpointing: what the backward pass computes anew instead of keeping it, block by block: ``none``; ``cheap``,
            all but matrix products and attention (norms, GELU, casts, regrouping); ``all``, everything between a
            block's input and its output (Chen et al., Training deep nets with sublinear memory cost, 2016).
        token_order: ``raster`` (last axis fastest), or ``volume``: the four parts of a sequence, along z, one after
            another, raster within each; for pretraining. Groups of ``grid`` and ``local`` are the same in either.
        mask_penalty: what the score of a forbidden pair loses. AR-SSL4M-DEMO adds its Boolean mask to the
            scores (1 where allowed, 0 where not), so that a forbidden pair loses 1 and nothing is hidden:
            ``mask_penalty=1`` computes what it computes. Not for training: the targets leak.

    Raises:
        ValueError: sizes that do not fit each other, with the numbers; an unknown name, with the known ones.
    """

    image_size: int | Sequence[int]
    patch_size: int | Sequence[int]
    in_channels: int = 1
    _: KW_ONLY
    size: str | Mapping[str, int] = "base"
    attention: str | Sequence[str] = "none"
    dilation: int | Sequence[int] = 2
    projections: str = "shared"
    gate_init: float = 0.01
    gate_learnable: bool = True
    position: str = "sincos"
    dropout: float = 0.0
    checkpointing: str = "none"
    token_order: str = "raster"
    mask_penalty: float = math.inf

    def __post_init__(self) -> None:
        if self.position not in ("sincos", "learned"):
            raise ValueError(f"position must be 'sincos' or 'learned', not {self.position!r}")
        if self.checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing {self.checkpointing!r} is unknown; there are {', '.join(CHECKPOINTING)}")
        if any(n % p for n, p in zip(self.volume, self.patch, strict=True)):
            raise ValueError(f"image_size {self.volume} is not divisible by patch_size {self.patch}")
        num_modes, num_layers = len(self.attention_modes), self.numbers["num_layers"]
        if not 1 <= num_modes <= num_layers:
            raise ValueError(f"{num_modes} attention modes are given for {num_layers} layers")

    @property
    def volume(self) -> Axes:
        """The volume in voxels, ``(X, Y, Z)``."""
        return axes(self.image_size, "image_size")

    @property
    def patch(self) -> Axes:
        """The patch in voxels, ``(p, q, r)``."""
        return axes(self.patch_size, "patch_size")

    @property
    def numbers(self) -> dict[str, int]:
        """Width, layers and heads, by ``SIZE_NUMBERS``."""
        if isinstance(self.size, str):
            if self.size not in SIZES:
                raise ValueError(f"network size {self.size!r} is unknown; the sizes are {', '.join(SIZES)}")
            return SIZES[self.size]
        if set(self.size) != set(SIZE_NUMBERS):
            raise ValueError(f"a network size needs exactly {', '.join(SIZE_NUMBERS)}; got {', '.join(self.size)}")
        return dict(self.size)

    @property
    def attention_modes(self) -> list[str]:
        """The attention modes that the layers take in turn."""
        return [self.attention] if isinstance(self.attention, str) else list(self.attention)

    def layout(self, end_token: bool) -> TokenLayout:
        """Where the tokens stand; with an end token in pretraining."""
        if self.token_order != "raster" and not end_token:
            raise ValueError(f"token_order {self.token_order!r} is for pretraining; maps of tokens are in raster order")
        t, h, w = (n // p for n, p in zip(self.volume, self.patch, strict=True))
        parts = parts_in_turn(self.token_order, (t, h, w))
        return TokenLayout((t, h, w), axes(self.dilation, "dilation"), end_token, parts)


def takes_fields_of(
    settings: Callable[Fields, Settings],
) -> Callable[[Callable[[Network, Settings], None]], Callable[Concatenate[Network, Fields], None]]:
    """For a constructor that takes settings: let it take their fields, so that configs name each number literally."""

    def decorate(construct: Callable[[Network, Settings], None]) -> Callable[Concatenate[Network, Fields], None]:
        def construct_from_fields(self: Network, /, *arguments: Fields.args, **fields: Fields.kwargs) -> None:
            construct(self, settings(*arguments, **fields))

        return construct_from_fields

    return decorate
