"""What ONNX has no field for (stage, quantization of each tensor), kept as JSON in the model's metadata_props."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ModelError, QirError
from ..graph import Graph, Stage
from ..types import DType, QuantParams

KEY = "qir"
VERSION = 1


def quant_to_json(q: QuantParams) -> dict[str, Any]:
    """Scales keep all their bits: JSON floats are written with repr."""
    out: dict[str, Any] = {"dtype": str(q.dtype), "scale": list(q.scale), "zero_point": list(q.zero_point)}
    if len(set(q.zero_point)) == 1:
        out["zero_point"] = q.zero_point[0]
    if q.axis is not None:
        out["axis"] = q.axis
    return out


def quant_from_json(data: Any) -> QuantParams:
    """Raises KeyError, TypeError, ValueError or QuantizationError on anything that `quant_to_json` did not write."""
    scale = tuple(float(s) for s in data["scale"])
    zero = data["zero_point"]
    zeros = (int(zero),) * len(scale) if isinstance(zero, int) else tuple(int(z) for z in zero)
    axis = data.get("axis")
    return QuantParams(scale, zeros, DType(data["dtype"]), None if axis is None else int(axis))


def dump(graph: Graph, wide: bool = False) -> str:
    """The JSON text for a graph; wide: its 4-bit inputs are 8-bit ones in the file, and named here."""
    quant = {v.name: quant_to_json(v.quant) for v in graph.values if v.quant is not None}
    data: dict[str, Any] = {"version": VERSION, "stage": graph.stage.name.lower(), "quant": quant}
    four = {v.name: str(v.dtype) for v in graph.inputs if wide and v.dtype.bits == 4}
    return json.dumps({**data, "inputs": four} if four else data, separators=(",", ":"))


def parse(text: str) -> tuple[Stage, dict[str, QuantParams], dict[str, DType]]:
    """(stage, annotations by tensor name, dtypes of 4-bit inputs).

    Raises ModelError on anything that `dump` did not write.
    """
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ModelError(f"metadata version {data['version']} is not {VERSION}", where=f"metadata {KEY!r}")
        four = {name: DType(kind) for name, kind in data.get("inputs", {}).items()}
        quant = {name: quant_from_json(q) for name, q in data["quant"].items()}
        return Stage[data["stage"].upper()], quant, four
    except ModelError:
        raise
    except (QirError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"cannot be read: {error}", where=f"metadata {KEY!r}") from error
