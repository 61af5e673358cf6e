"""qir: float ONNX in, integer-only ONNX out."""

from .graph import Graph, Node, Stage, Value
from .types import DType, QuantParams, TensorType

__version__ = "0.1.0"
__all__ = ["DType", "Graph", "Node", "QuantParams", "Stage", "TensorType", "Value", "__version__"]
