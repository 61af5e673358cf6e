"""qir: float ONNX in, integer-only ONNX out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .graph import Graph, Node, Stage, Value
from .types import DType, QuantParams, TensorType

if TYPE_CHECKING:
    from qir.passes.pipeline import quantize

    from .io import load, save

__version__ = "0.1.0"
__all__ = [
    "DType", "Graph", "Node", "QuantParams", "Stage", "TensorType", "Value", "__version__", "load", "quantize",
    "save",
]  # fmt: skip

_LAZY = {"load": "qir.io", "quantize": "qir.passes.pipeline", "save": "qir.io"}
"""Names whose modules are imported when they are first asked for: onnx alone takes longer than all of qir."""

_PARTS = ("io", "passes", "runtime")
"""Sub-packages that `import qir` makes reachable as attributes, without importing them yet."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PARTS:
        return import_module(f"qir.{name}")
    raise AttributeError(f"module 'qir' has no attribute {name!r}")
