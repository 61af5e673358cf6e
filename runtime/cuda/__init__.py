"""The CUDA runtime: integer-only graphs on NVIDIA GPUs, the reference's bits."""

from .session import Cuda

__all__ = ["Cuda"]
