"""DiGAR: dilated-gated autoregressive pretraining of 3D vision transformers, and what is built on it."""

__version__ = "0.5.0"
