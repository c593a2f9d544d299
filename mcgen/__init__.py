"""mcgen: a compiler from memory specs to fused kernels for recurrent models with cached segments."""

__version__ = "0.1.0"
