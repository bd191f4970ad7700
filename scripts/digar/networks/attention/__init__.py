"""Dilated-gated attention: the shared function (core), one module per mode, and the gated layer."""

from digar.networks.attention.gated import MODES, GatedAttention, ResidualGate, branches, build_branch

__all__ = ["MODES", "GatedAttention", "ResidualGate", "branches", "build_branch"]
