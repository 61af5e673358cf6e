"""BatchNormalization: in inference an affine map for each channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError, TypeInferenceError
from ..lowering import Lowering
from ..types import Array, TensorType
from .affine import lower_affine
from .base import Op, register

if TYPE_CHECKING:
    from ..graph import Node


@register
class BatchNormalization(Op):
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta, per channel (axis 1)        [White Paper eq. 10]"""

    name = "BatchNormalization"
    trained = True
    affine = True
    inputs = "x gamma beta mean var"
    attrs = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = types[0]
        if x is None or x.rank < 2:
            raise TypeInferenceError("BatchNormalization takes a tensor with a channel axis")
        if attrs["training_mode"]:
            raise TypeInferenceError("is in training mode; export the model in evaluation mode")
        for t in types[1:]:
            if t is None or t.shape != (x.shape[1],):
                raise TypeInferenceError(f"parameters of {x.shape[1]} channels expected, {t} given")
        var = consts[4]
        if var is not None and not (np.asarray(var) + attrs["epsilon"] > 0).all():
            raise ModelError("a variance is negative")
        return [TensorType(x.dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, gamma, beta, mean, var = inputs
        shape = (-1, *[1] * (x.ndim - 2))
        scale = gamma / np.sqrt(var + var.dtype.type(attrs["epsilon"]))
        return ((x * scale.reshape(shape) + (beta - mean * scale).reshape(shape)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        gamma, beta, mean, var = (low.real_constant(node.input(i)) for i in range(1, 5))
        scale = gamma / np.sqrt(var + node.attrs["epsilon"])
        shape = (-1, *[1] * (node.input(0).type.rank - 2))
        lower_affine(low, node, low.form(node.input(0)), scale.reshape(shape), (beta - mean * scale).reshape(shape))
