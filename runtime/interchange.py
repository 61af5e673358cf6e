"""Arrays of other packages: which live on a GPU, and how those on the host become NumPy arrays without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.types import Array

CUDA = 2
"""kDLCUDA of DLPack's DLDeviceType."""


def on_gpu(array: Any) -> bool:
    """Whether an array of any package (CuPy, PyTorch, JAX, Numba ...) is in CUDA device memory."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == CUDA


def host_array(array: Any) -> Array:
    """A NumPy array over (where possible) the same host memory: array-likes, and what speaks only DLPack."""
    if not hasattr(array, "__array__") and hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    return np.asarray(array)
