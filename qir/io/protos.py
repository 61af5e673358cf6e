"""Small translations between the IR and ONNX protobufs: dtypes, tensors, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..errors import UnsupportedError
from ..types import Array, DType
from .functions import ONNX_TYPE

DTYPE_OF: dict[int, DType] = {v: k for k, v in ONNX_TYPE.items()}
"""ONNX element type -> DType."""

DTYPE_ATTRS = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that ONNX writes as an element type's number and the IR as a dtype's name."""


def dtype_of(elem_type: int, where: str) -> DType:
    """The DType of an ONNX element type.  Raises UnsupportedError (strings, complex, float8, bfloat16 ...)."""
    if elem_type in DTYPE_OF:
        return DTYPE_OF[elem_type]
    known = onnx.TensorProto.DataType.items()
    name = next((k for k, v in known if v == elem_type), str(elem_type))
    raise UnsupportedError(f"element type {name} is not supported", where=where)


def pack_int4(array: Array) -> bytes:
    """Two elements to a byte, low nibble first, the last byte padded with zero  [docs/arithmetic.md 8]."""
    nibbles = np.ascontiguousarray(array).reshape(-1).astype(np.uint8) & np.uint8(0xF)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def unpack_int4(raw: bytes, count: int, dtype: DType) -> Array:
    """The inverse of `pack_int4`, one element a byte."""
    packed = np.frombuffer(raw, dtype=np.uint8)
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)[:count]
    if dtype.is_signed:
        return ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.int8)
    return nibbles


def tensor_proto(name: str, array: Array, dtype: DType) -> onnx.TensorProto:
    """A TensorProto with raw little-endian data."""
    if dtype.bits == 4:
        raw = pack_int4(array)
    else:
        raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return helper.make_tensor(name, ONNX_TYPE[dtype], array.shape, raw, raw=True)


def export_attrs(attrs: Mapping[str, Any], *, standard: bool) -> dict[str, Any]:
    """Attributes as onnx.helper takes them: None left out, arrays as tensors, dtype names as numbers where standard."""
    out: dict[str, Any] = {}
    for key, value in attrs.items():
        if value is None:
            continue
        if standard and key in DTYPE_ATTRS and isinstance(value, str):
            value = ONNX_TYPE[DType(value)]
        elif isinstance(value, np.ndarray):
            value = tensor_proto("", value, DType.of(value))
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, np.generic):
            value = value.item()
        out[key] = value
    return out


def attribute_proto(key: str, value: Any) -> onnx.AttributeProto:
    """`helper.make_attribute`, with empty lists taken as INTS."""
    if isinstance(value, list) and not value:
        return helper.make_attribute(key, value, attr_type=onnx.AttributeProto.INTS)
    return helper.make_attribute(key, value)
