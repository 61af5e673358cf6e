"""Weights packed below a byte with a scale for each block: com.microsoft's MatMulNBits.

    y = a W^T (+ bias),  W[n, k] = (q[n, k] - z[n, k // block]) s[n, k // block]
q: `bits` wide, packed from the low bits up; z: packed likewise, or of the scale's dtype; absent: 2^(bits-1).
[onnxruntime contrib operators, com.microsoft.MatMulNBits]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...errors import ModelError, UnsupportedError
from ...types import Array, DType
from ..adapters import Raw, Scope

Lower = Callable[[Scope, Raw], Iterator[Raw]]


def unpacked(packed: Array, bits: int) -> Array:
    """Bytes (..., n) as integers (..., n * 8 / bits), uint8, the low bits first."""
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    ints = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return ints.reshape(*packed.shape[:-1], packed.shape[-1] * per_byte).astype(np.uint8)


def matmul_nbits(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """a, b (packed), scales, zero_points?, g_idx?, bias?

    Becomes MatMul(a, DequantizeLinear(W^T)) with block_size along axis 0.
    Raises UnsupportedError (bits other than 2, 4 and 8, columns in another order), ModelError (sizes that do not fit).
    """
    k, n, bits, block = (int(raw.attrs[name]) for name in ("K", "N", "bits", "block_size"))
    packed, scales = scope.data(raw.input(1)), scope.data(raw.input(2))
    if bits not in (2, 4, 8):
        raise UnsupportedError(f"weights of {bits} bits are not supported", where=str(raw), hint="2, 4 or 8")
    if raw.input(4) is not None:
        raise UnsupportedError("g_idx (columns in an order of their own) is not supported", where=str(raw))
    if packed is None or scales is None:
        raise UnsupportedError("weights that are no constants", where=str(raw))
    blocks = -(-k // block)
    if min(k, n, block) < 1 or packed.size * 8 != n * blocks * block * bits or scales.size != n * blocks:
        raise ModelError(f"weights of {packed.size} bytes do not fit N {n}, K {k}", where=str(raw))
    ints = unpacked(packed.reshape(n, -1), bits)[:, :k]
    zeros = _zero_points(scope, raw, n, blocks, bits)
    kind = DType.UINT4 if bits <= 4 else DType.UINT8
    values = {
        "w": (ints.T, kind),
        "scale": (scales.reshape(n, blocks).astype(np.float32).T, None),
        "zero_point": (zeros.T, kind),
    }
    names: list[str | None] = []
    for hint, (array, dtype) in values.items():
        names.append(scope.constant(f"{raw.name}.{hint}", np.ascontiguousarray(array)))
        if dtype is DType.UINT4:
            scope.set_dtype(names[-1] or "", dtype)
    real, bias = scope.fresh(f"{raw.name}.w_real"), raw.input(5)
    made = scope.fresh(f"{raw.name}.product") if bias else raw.outputs[0]
    attrs = {"axis": 0, "block_size": block}
    yield Raw("DequantizeLinear", f"{raw.name}.w", attrs, names, [real])
    yield Raw("MatMul", raw.name, {}, [raw.inputs[0], real], [made])
    if bias:
        yield Raw("Add", f"{raw.name}.bias", {}, [made, bias], raw.outputs[:1])


def _zero_points(scope: Scope, raw: Raw, n: int, blocks: int, bits: int) -> Array:
    """(n, blocks), uint8."""
    zero = scope.data(raw.input(3))
    if zero is None:
        return np.full((n, blocks), 2 ** (bits - 1), np.uint8)
    if zero.dtype != np.uint8:
        if not np.array_equal(zero, np.clip(np.rint(zero), 0, (1 << bits) - 1)):
            raise UnsupportedError("zero points that are no integers", where=str(raw))
        return zero.reshape(n, blocks).astype(np.uint8)
    return unpacked(zero.reshape(n, -1), bits)[:, :blocks]


MICROSOFT: dict[str, Lower] = {"MatMulNBits": matmul_nbits}
