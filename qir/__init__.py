"""qir: float ONNX in, integer-only ONNX out."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing itself takes a while to import: Ctrl-C is listened to before that
if TYPE_CHECKING:
    from typing import Any

    from qir.passes.pipeline import quantize

    from . import io, models, passes, runtime
    from .graph import Graph, Node, Stage, Value
    from .io import load, save
    from .types import DType, QuantParams, TensorType

__version__ = "0.1.0"
__all__ = [
    "DType", "Graph", "Node", "QuantParams", "Stage", "TensorType", "Value", "__version__", "io", "load", "models",
    "passes", "quantize", "runtime", "save",
]  # fmt: skip

_LAZY = {
    "DType": "qir.types", "QuantParams": "qir.types", "TensorType": "qir.types",
    "Graph": "qir.graph", "Node": "qir.graph", "Stage": "qir.graph", "Value": "qir.graph",
    "load": "qir.io", "quantize": "qir.passes.pipeline", "save": "qir.io",
}  # fmt: skip
"""Names whose modules are imported when they are first asked for: onnx alone takes longer than all of qir, and
nothing heavy may be imported before the command line listens to Ctrl-C."""

_PARTS = ("io", "models", "passes", "runtime")
"""Sub-packages that `import qir` makes reachable as attributes, without importing them yet."""


RUNNER = "qir.runtime.session:Session"
"""Who runs graphs for passes unless they are handed a runner: `qir.running` reads it.  This file stands above both."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PARTS:
        return import_module(f"qir.{name}")
    raise AttributeError(f"module 'qir' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
