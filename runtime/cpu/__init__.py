"""The CPU backend: exact integers on every core, kernels compiled by numba, NumPy where that is missing."""

from .session import Cpu

__all__ = ["Cpu"]
