"""What a tensor is: dtype, shape and, for an integer tensor, the affine map back to the reals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizationError, UnsupportedError

Array = NDArray[Any]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a NumPy dtype is a float of any width; bfloat16 (of ml_dtypes) is one, too."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


Dim = int | str
"""A size. A string is symbolic: "N" is the batch, "4*N" a multiple of it."""

Shape = tuple[Dim, ...]


class DType(str, Enum):
    """Element types. INT4/UINT4 live in NumPy as int8/uint8, one element a byte; packing is the file's matter."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    INT4 = "int4"
    UINT4 = "uint4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"

    def __str__(self) -> str:
        return self.value

    @property
    def is_float(self) -> bool:
        return self.value.startswith("float")

    @property
    def is_integer(self) -> bool:
        return "int" in self.value

    @property
    def is_signed(self) -> bool:
        return self.value.startswith("int")

    @property
    def bits(self) -> int:
        return 8 if self is DType.BOOL else int("".join(c for c in self.value if c.isdigit()))

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype that holds it."""
        return np.dtype({"int4": "int8", "uint4": "uint8"}.get(self.value, self.value))

    @property
    def lo(self) -> int:
        """Least value of an integer dtype."""
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def hi(self) -> int:
        """Greatest value of an integer dtype."""
        return (1 << (self.bits - (1 if self.is_signed else 0))) - 1

    @staticmethod
    def of(array: Array | np.dtype[np.generic]) -> DType:
        """The DType of a NumPy array or dtype.  Raises UnsupportedError for strings, complex, objects ..."""
        dtype = array if isinstance(array, np.dtype) else array.dtype
        try:
            return DType(dtype.name)
        except ValueError:
            raise UnsupportedError(f"dtype {dtype.name} is not supported") from None


@dataclass(frozen=True)
class QuantParams:
    """real = (q - zero_point) * scale, per tensor (one scale) or per channel along `axis`.

    Scales are float64 values; whoever writes them to a QDQ graph rounds them to float32 *first*
    (`QuantParams.make` does), so that equality of scales is exact and never a tolerance.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    dtype: DType
    axis: int | None = None

    def __post_init__(self) -> None:
        if not self.scale or len(self.scale) != len(self.zero_point):
            raise QuantizationError(f"{len(self.scale)} scales but {len(self.zero_point)} zero points")
        if not self.dtype.is_integer:
            raise QuantizationError(f"a quantized tensor has an integer dtype, not {self.dtype}")
        if self.axis is None and len(self.scale) != 1:
            raise QuantizationError(f"{len(self.scale)} scales need an axis")
        for s in self.scale:
            if not (math.isfinite(s) and s > 0):
                raise QuantizationError(f"scale {s} is not a positive finite number")
        lo, hi = self.dtype.lo, self.dtype.hi
        for z in self.zero_point:
            if not lo <= z <= hi:
                raise QuantizationError(f"zero point {z} is outside {self.dtype}")

    @staticmethod
    def make(
        scale: float | Sequence[float] | Array,
        zero_point: int | Sequence[int] | Array = 0,
        dtype: DType = DType.INT8,
        axis: int | None = None,
    ) -> QuantParams:
        """Scales rounded to float32, a scalar zero point repeated for each channel."""
        s = tuple(float(v) for v in np.asarray(scale, dtype=np.float32).reshape(-1))
        z = tuple(int(v) for v in np.asarray(zero_point).reshape(-1))
        return QuantParams(s, z * len(s) if len(z) == 1 else z, dtype, axis)

    @property
    def per_channel(self) -> bool:
        return self.axis is not None

    def along(self, rank: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scale (float64) and zero point (int64) shaped to broadcast against a tensor of `rank` axes."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = len(self.scale)
        s = np.asarray(self.scale, dtype=np.float64)
        z = np.asarray(self.zero_point, dtype=np.int64)
        return (s.reshape(shape), z.reshape(shape)) if rank else (s.reshape(()), z.reshape(()))

    def quantize(self, x: Array) -> Array:
        """Nearest grid point, half to even, saturated; computed in float64 (compile-time use)."""
        s, z = self.along(np.ndim(x))
        q = np.rint(np.asarray(x, dtype=np.float64) / s) + z
        return np.clip(q, self.dtype.lo, self.dtype.hi).astype(self.dtype.numpy)

    def dequantize(self, q: Array) -> NDArray[np.float64]:
        """The reals that integers stand for, float64."""
        s, z = self.along(np.ndim(q))
        return (np.asarray(q, dtype=np.int64) - z) * s


@dataclass(frozen=True)
class TensorType:
    """dtype, shape and, where the tensor is quantized, its QuantParams (`quant.dtype == dtype` then)."""

    dtype: DType
    shape: Shape
    quant: QuantParams | None = None

    def __post_init__(self) -> None:
        if self.quant is not None and self.quant.dtype is not self.dtype:
            raise QuantizationError(f"{self.dtype} tensor annotated as quantized {self.quant.dtype}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        text = f"{self.dtype}[{','.join(str(d) for d in self.shape)}]"
        if self.quant is None:
            return text
        q = self.quant
        if q.per_channel:
            return f"{text} @axis={q.axis} scale=<{len(q.scale)}>"
        return f"{text} @scale={q.scale[0]!r} zp={q.zero_point[0]}"
