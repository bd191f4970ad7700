"""Dilated-gated attention: what all functions share (branch, core), a file for each, the modes, the gated layer."""

from digar.networks.attention.branch import Branch, TokenLayout
from digar.networks.attention.gated import GatedAttention, ResidualGate
from digar.networks.attention.modes import MODES

__all__ = ["MODES", "Branch", "GatedAttention", "ResidualGate", "TokenLayout"]
