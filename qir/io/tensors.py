"""Constants out of a file, treated as hostile: sizes are checked before memory is, external data stay in the folder."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ModelError
from ..ops.memory import demand
from ..types import Array, DType
from .protos import dtype_of, unpack_int4

HALF = {int(onnx.TensorProto.FLOAT16), int(onnx.TensorProto.BFLOAT16)}
OTHER_FLOATS = HALF | {int(onnx.TensorProto.DOUBLE)}
"""Half and double precision are computed in float32: the IR's float operators have one float type."""


def ir_dtype(elem_type: int, where: str) -> DType:
    """The IR's dtype for an ONNX element type, float32 for all floats.  Raises UnsupportedError for what has none."""
    return DType.FLOAT32 if elem_type in OTHER_FLOATS else dtype_of(elem_type, where)


def external_path(location: str, folder: Path | None, where: str) -> Path:
    """The file that holds a tensor's data: a relative path that does not leave the model's folder.

    Raises ModelError: no folder (the model came as bytes), absolute path, "..", a symbolic link out, no such file.
    """
    if folder is None:
        raise ModelError("has external data, but the model did not come from a file", where=where,
                         hint="load it by its path")  # fmt: skip
    parts = location.replace("\\", "/").split("/")
    if not location or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ModelError(f"external data at {location!r} is outside the model's folder", where=where)
    root = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(root, *parts))
    if os.path.commonpath([root, real]) != root:
        raise ModelError(f"external data at {location!r} is a link out of the model's folder", where=where)
    if not os.path.isfile(real):
        raise ModelError(f"external data file {location!r} does not exist", where=where)
    return Path(real)


def read_external(proto: onnx.TensorProto, size: int, folder: Path | None, where: str) -> bytes:
    """`size` bytes of a tensor from its external file.  Raises ModelError when they are not there."""
    entries = {e.key: e.value for e in proto.external_data}
    path = external_path(entries.get("location", ""), folder, where)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError:
        raise ModelError("external data offset or length is not a number", where=where) from None
    if offset < 0 or length != size or offset + length > path.stat().st_size:
        raise ModelError(
            f"needs {size} bytes, but {length} at {offset} of a file of {path.stat().st_size} are given", where=where
        )
    demand(size, "its external data", where)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def tensor_array(proto: onnx.TensorProto, folder: Path | None, where: str) -> tuple[Array, DType]:
    """A TensorProto's data and dtype; half floats and doubles come as float32, 4-bit integers one a byte.

    Raises ModelError where data and shape do not agree, UnsupportedError for dtypes that qir does not know.
    """
    kind = ir_dtype(proto.data_type, where)
    shape = tuple(int(d) for d in proto.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"has a negative size in {list(shape)}", where=where)
    count = math.prod(shape)
    stored = stored_dtype(proto.data_type, kind)
    bits = kind.bits if kind.bits == 4 else 8 * stored.itemsize
    size = (count * bits + 7) // 8
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raw = read_external(proto, size, folder, where)
    elif proto.HasField("raw_data"):
        raw = proto.raw_data
        if len(raw) != size:
            raise ModelError(f"shape {list(shape)} needs {size} bytes, {len(raw)} given", where=where)
    else:
        return _typed(proto, kind, shape, count, where), kind
    if kind.bits == 4:
        return unpack_int4(raw, count, kind).reshape(shape), kind
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        bits_u32 = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return bits_u32.view(np.float32).reshape(shape), kind
    array = np.frombuffer(raw, dtype=stored.newbyteorder("<")).reshape(shape)
    with np.errstate(over="ignore"):  # a double beyond float32: infinity, which is judged where it is used
        return array.astype(kind.numpy, copy=False), kind


def stored_dtype(elem_type: int, kind: DType) -> np.dtype[Any]:
    """What the file holds of a tensor that becomes `kind`, bfloat16 as wide as float16."""
    if elem_type in HALF:
        return np.dtype(np.float16)
    return np.dtype(np.float64) if elem_type in OTHER_FLOATS else kind.numpy


def _typed(proto: onnx.TensorProto, kind: DType, shape: tuple[int, ...], count: int, where: str) -> Array:
    """Data in the typed fields (float_data, int32_data ...), their number checked first."""
    field = {DType.FLOAT32: "float_data", DType.INT64: "int64_data", DType.UINT64: "uint64_data",
             DType.UINT32: "uint64_data"}.get(kind, "int32_data")  # fmt: skip
    if proto.data_type in OTHER_FLOATS:
        field = "int32_data" if proto.data_type in HALF else "double_data"
    given = len(getattr(proto, field))
    expected = (count + 1) // 2 if kind.bits == 4 else count
    if given not in {expected, count}:
        raise ModelError(f"shape {list(shape)} needs {count} elements, {given} given", where=where)
    try:
        with np.errstate(over="ignore"):
            return np.asarray(numpy_helper.to_array(proto)).astype(kind.numpy).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"cannot be read: {error}", where=where) from error
