"""How a model's file declares its inputs and outputs, where the IR has one float type: JSON in the metadata.

`qir.io.signature` reads and writes it; what an integer graph's outputs are to its users is said here, without onnx.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

KEY = "qir.signature"
"""Metadata: {"inputs": {name: {"type", "axes": {axis: name}, "doc"}}, "outputs": ..., "model": {field: value}}."""

FLOATS: dict[str, Any] = {"FLOAT16": np.float16, "DOUBLE": np.float64, "BFLOAT16": None}
"""ONNX's names of the floats that are computed in float32 -> NumPy's; bfloat16 arrays stay float32."""


def parse(text: str) -> dict[str, dict[str, Any]]:
    """What `describe` wrote; empty parts for anything else (a file may say what it likes)."""
    empty: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}, "model": {}}
    try:
        data: Any = json.loads(text or "{}")
        parts = {k: dict(data.get(k, {})) for k in empty}
        valid = all(isinstance(e, dict) for k in ("inputs", "outputs") for e in parts[k].values())
    except (ValueError, TypeError, AttributeError, RecursionError):
        return empty
    return parts if valid else empty


def border_types(text: str | None, part: str) -> dict[str, str]:
    """ONNX type names of the inputs or outputs (`part`) that are floats of another type than float32."""
    return {n: e["type"] for n, e in parse(text or "")[part].items() if e.get("type") in FLOATS}


def as_declared(results: dict[str, Any], text: str | None) -> dict[str, Any]:
    """Float32 outputs in the types that the file declares for them, as its Cast gives them."""
    for name, wanted in border_types(text, "outputs").items():
        array: Any = results.get(name)
        if FLOATS[wanted] and isinstance(array, np.ndarray) and array.dtype == np.float32:
            with np.errstate(over="ignore"):
                results[name] = array.astype(FLOATS[wanted])
    return results
