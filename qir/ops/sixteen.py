"""Standard operators that runtimes have no 16-bit integer kernel for: exported as functions through int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..types import DType

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body


def needs_wider(node: Node) -> bool:
    """Whether the node works on 16-bit (or 4-bit) integers."""
    kind = node.input(0).dtype
    return kind.is_integer and (kind.bits == 16 or kind.bits < 8)


def through_int32(body: Body, node: Node, data: Sequence[int], results: Sequence[int] = (0,)) -> None:
    """Cast, the operator itself on int32, Cast back.

    data: indices of the inputs to widen.  results: indices of the outputs to narrow; the others keep their dtype.
    """
    names = [
        "" if v is None else body.cast(n, DType.INT32) if i in data else n
        for i, (n, v) in enumerate(zip(body.inputs, node.inputs, strict=False))
    ]
    while names and not names[-1]:
        names.pop()
    attrs = {k: v for k, v in node.attrs.items() if v is not None}
    formal = node.outputs
    outs = body.ops(node.op, *names, count=len(formal), **attrs)
    from . import op_of

    words = [w.rstrip("?*") for w in op_of(node.op).outputs.split()]
    for i, value in enumerate(formal):
        if i in results:
            body.op("Cast", outs[i], output=words[i], to=body.onnx_type(value.dtype))
        else:
            body.op("Identity", outs[i], output=words[i])
