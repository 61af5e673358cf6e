"""Files: ONNX in and out.  The only package that touches onnx and onnx-graphsurgeon."""

from .export import DEFAULT_OPSET, to_onnx

__all__ = ["DEFAULT_OPSET", "to_onnx"]
