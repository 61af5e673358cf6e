"""Along which axis what reads a tensor weighs it, channel by channel."""

from __future__ import annotations

import numpy as np

from qir.graph import Node
from qir.ops import op_of
from qir.ops.affine import channel_vector


def feature_axis(node: Node, index: int) -> int | None:
    """The axis of an operand along which a node weighs it, channel by channel; None where it does not."""
    value, op = node.input(index), op_of(node.op)
    rank = value.type.rank
    if op.linear:
        if index or not all(v is None or v.is_constant for v in node.inputs[1:]) or node.op == "ConvTranspose":
            return None
        if node.op == "Conv":
            return 1
        return None if node.attrs.get("transA", 0) or node.input(1).type.rank != 2 else rank - 1
    others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
    if node.op == "BatchNormalization":
        return 1 if index == 0 and others[0].is_constant and (others[0].array() > 0).all() else None
    if not op.affine or not others or not all(v.is_constant for v in others) or node.output.shape != value.shape:
        return None
    if index and node.op in ("Div", "Sub"):
        return None
    if node.op in ("Mul", "Div") and not all((v.array() > 0).all() for v in others):
        return None  # a requantization does not turn signs
    found = channel_vector(others[0].array().astype(np.float64), rank)
    return None if found is None else found[0] if found[0] >= 0 else rank - 1 if rank == 2 else None
