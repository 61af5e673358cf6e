"""Encodings of AIMET (JSON of versions 0.6.1, 1.0 and 2.0) onto a float graph: grids that another tool has chosen.

    0.6.1, 1.0:  real = (q + offset) scale,  q in 0 .. 2^bits - 1;  a signed grid is q - 2^(bits - 1)
    2.0:         real = (q - y_zero_point) y_scale, as QuantizeLinear has it
Weights are rounded to their grids and stay on them (`GIVEN_WEIGHTS`); activations have the intervals of theirs
(`GIVEN_RANGES`), the others are calibrated.        [AIMET documentation, Encoding format specification]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qir.errors import ParseError, QuantizationError
from qir.graph import Graph, Value
from qir.ops import op_of
from qir.types import DType, QuantParams

from ..quantization.given_grids import GIVEN_RANGES, GIVEN_WEIGHTS
from ..quantization.insert_qdq import channel_axis

Floats = list[float]


@dataclass(frozen=True)
class Encoding:
    """One tensor's grid: a scale and zero point, or one for each channel of `axis` (None where the file names none)."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    dtype: DType
    axis: int | None = None


@dataclass(frozen=True)
class Encodings:
    """Tensor name -> its grid."""

    tensors: Mapping[str, Encoding] = field(default_factory=dict[str, Encoding])

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The intervals of grids with one scale."""
        return {n: _interval(e) for n, e in self.tensors.items() if len(e.scale) == 1}

    @staticmethod
    def load(path: str | Path) -> Encodings:
        """Read a file.  Raises ParseError where it is none, or says what this does not know."""
        where = str(path)
        try:
            data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            version = str(data.get("version", "0.6.1")).split(".")[0]
            if version not in ("0", "1", "2"):
                raise ParseError(f"encodings of version {data['version']} are not known", where=where,
                                 hint="0.6.1, 1.0 and 2.0 are")  # fmt: skip
            found = _version_2(data) if version == "2" else _version_1(data)
            return Encodings(dict(found))
        except (OSError, UnicodeDecodeError) as error:
            raise ParseError(f"cannot be read: {error}", where=where) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ParseError(f"is no file of encodings ({type(error).__name__}: {error})", where=where) from None

    def apply(self, graph: Graph) -> tuple[Graph, list[str]]:
        """(a copy of a float graph with these grids, names of encodings that belong to no tensor of it)."""
        new = graph.clone()
        weights, ranges = new.tables.setdefault(GIVEN_WEIGHTS, {}), new.tables.setdefault(GIVEN_RANGES, {})
        unknown: list[str] = []
        for name, encoding in self.tensors.items():
            if name not in new:
                unknown.append(name)
                continue
            value = new.value(name)
            if value.is_constant:
                if encoding.dtype.bits <= 8 and value.dtype.is_float:
                    q = _params(value, encoding)
                    value.data = q.dequantize(q.quantize(value.array())).astype(value.dtype.numpy)
                    weights[name] = q
            elif value.dtype.is_float and len(encoding.scale) == 1:
                ranges[name] = _interval(encoding)
        return new, unknown


def _interval(e: Encoding) -> tuple[float, float]:
    return (e.dtype.lo - e.zero_point[0]) * e.scale[0], (e.dtype.hi - e.zero_point[0]) * e.scale[0]


def _params(value: Value, e: Encoding) -> QuantParams:
    """The grid of a constant; where no axis is named, that of the output channels of the layer that reads it."""
    if len(e.scale) == 1:
        return QuantParams.make(e.scale, e.zero_point, e.dtype)
    axis = e.axis
    if axis is None:
        axes = [channel_axis(n) for n, i in value.uses() if i == 1 and op_of(n.op).linear]
        sized = [a for a, d in enumerate(value.shape) if d == len(e.scale)]
        axis = next((a for a in axes if a is not None), sized[0] if sized else None)
    if axis is None or value.shape[axis % value.type.rank] != len(e.scale):
        raise QuantizationError(f"{len(e.scale)} scales for {value.type}", where=f"encoding of {value.name!r}")
    return QuantParams.make(e.scale, e.zero_point, e.dtype, axis % value.type.rank)


def _version_1(data: Mapping[str, Any]) -> Iterator[tuple[str, Encoding]]:
    """0.6.1: name -> list of one for each channel; 1.0: list of entries with a name."""
    for part in ("activation_encodings", "param_encodings"):
        entries: Any = data.get(part, {})
        if isinstance(entries, dict):
            entries = [_merged(str(name), channels) for name, channels in entries.items()]
        for e in entries:
            if str(e.get("dtype", "int")).lower() != "int" or "scale" not in e:
                continue  # a tensor that stays in float
            bits, signed = int(e.get("bw", e.get("bitwidth", 8))), str(e.get("is_sym", "")).lower() == "true"
            scale, offset = _list(e["scale"], float), _list(e.get("offset", 0), int)
            kind = DType(f"{'int' if signed else 'uint'}{_stored(bits)}")
            middle = 1 << (bits - 1)
            zeros = [-o - middle if signed else -o for o in offset]
            yield str(e["name"]), _encoding(scale, zeros, kind, e.get("axis"))


def _merged(name: str, channels: Any) -> dict[str, Any]:
    first = channels[0]
    if "scale" not in first:
        return {"name": name, "dtype": "float"}
    return {
        "name": name, "dtype": first.get("dtype", "int"), "bw": first["bitwidth"], "is_sym": first["is_symmetric"],
        "scale": [c["scale"] for c in channels], "offset": [c["offset"] for c in channels],
    }  # fmt: skip


def _version_2(data: Mapping[str, Any]) -> Iterator[tuple[str, Encoding]]:
    for e in data["encodings"]:
        kind = str(e["output_dtype"])
        if "int" not in kind or e.get("block_size"):
            continue
        scale = _list(e["y_scale"], float)
        bits = int("".join(c for c in kind if c.isdigit()))
        stored = DType(f"{'u' if kind.startswith('u') else ''}int{_stored(bits)}")
        yield str(e["name"]), _encoding(scale, _list(e.get("y_zero_point", 0) or 0, int), stored, e.get("axis"))


def _stored(bits: int) -> int:
    """The width of the dtype that has a grid's codes."""
    if bits not in (4, 8, 16, 32):
        raise ValueError(f"grids of {bits} bits are not supported")
    return bits


def _list(value: Any, kind: Any) -> list[Any]:
    return [kind(v) for v in value] if isinstance(value, list) else [kind(value)]


def _encoding(scale: Floats, zeros: list[int], kind: DType, axis: Any) -> Encoding:
    zeros = zeros * len(scale) if len(zeros) == 1 else zeros
    QuantParams(tuple(scale), tuple(zeros), kind, None if len(scale) == 1 else 0)  # checks them
    return Encoding(tuple(scale), tuple(zeros), kind, None if axis is None else int(axis))
