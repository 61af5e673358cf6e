"""Files: ONNX in and out.  The only package that touches onnx and onnx-graphsurgeon."""

from .audit import audit
from .border import strip_border
from .export import DEFAULT_OPSET, to_onnx
from .load import load
from .save import save

__all__ = ["DEFAULT_OPSET", "audit", "load", "save", "strip_border", "to_onnx"]
