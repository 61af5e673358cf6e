"""What elementwise operators share: output types, exact float formulas, and the lowering of affine maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import TypeInferenceError
from ..types import Array, DType, TensorType
from .base import Op


def present(types: Sequence[TensorType | None]) -> list[TensorType]:
    """The inputs that are there."""
    return [t for t in types if t is not None]


def broadcast_type(types: Sequence[TensorType | None], dtype: DType | None = None) -> TensorType:
    """Type of an elementwise result under NumPy broadcasting; dtypes must agree.  Raises TypeInferenceError."""
    given = present(types)
    if len({t.dtype for t in given}) != 1:
        raise TypeInferenceError(f"operands have different dtypes: {', '.join(str(t) for t in given)}")
    shape = np.broadcast_shapes(*[tuple(int(d) for d in t.shape) for t in given])
    return TensorType(dtype or given[0].dtype, shape)


class Elementwise(Op):
    """Operators whose output has the broadcast shape of their inputs and their dtype."""

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [broadcast_type(types)]
