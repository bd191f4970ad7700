"""What every attention mode is: a function of queries, keys and values that stand in one layout of tokens."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of a sequence stand, and how far apart those are that attend each other.

    The sequence is a start token, the patches of the grid in token order, and perhaps an end token.

    Args:
        grid_size: patches per axis ``(t, h, w)``.
        dilation: r per axis.
        end_token: whether an end token stands after the patches.
        parts: along z, that come one after another in token order, raster within each; 1 is plain raster order.
    """

    grid_size: tuple[int, int, int]
    dilation: tuple[int, int, int] = (2, 2, 2)
    end_token: bool = False
    parts: int = 1

    @property
    def num_patches(self) -> int:
        """N."""
        return math.prod(self.grid_size)

    @property
    def num_tokens(self) -> int:
        """S: the patches, the start token and perhaps the end token."""
        return 1 + self.num_patches + int(self.end_token)


class Branch(Protocol):
    """An attention function: a module that is built from a layout and has no weights of its own.

    A mode is one of them, or an undilated and a dilated one that a gate blends (``attention/modes.py``).
    """

    num_scores: int  # per head and sample

    def biases(self, prefix: Tensor, penalty: float, dtype: torch.dtype) -> list[Tensor]:
        """The prefix-causal mask as the additive biases that a call takes, expanded once for all layers of a mode.

        Args:
            prefix: length P of the bidirectional prefix of each sample, ``(B,)``.
            penalty: what a forbidden score loses; ``inf`` hides it.
            dtype: that of the queries.
        """
        ...

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor]) -> Tensor:
        """``(B, heads, S, d)`` each, the result too; without biases every token attends all that the mode lets it."""
        ...
