"""Ignite handlers that MONAI lacks: checkpoints, gradient clipping, curves, pictures."""
