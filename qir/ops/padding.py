"""Pad: a constant, the reflected interior, the edge or the other side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..lowering import Bounds, Fixed, Lowering
from ..types import Array, QuantParams, TensorType
from .base import Op, register
from .movement import arg, axes_of, const, first, ints, move_all, optional_const, parameter

if TYPE_CHECKING:
    from ..graph import Node, Value

MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad_widths(rank: int, pads: Any, axes: Any) -> list[tuple[int, int]]:
    """(begin, end) for each axis; negative widths crop."""
    given = [int(p) for p in np.reshape(pads, -1)]
    order = list(range(rank)) if axes is None else [int(a) % rank for a in np.reshape(axes, -1)]
    if axes is not None:
        axes_of(axes, rank)
    if len(given) != 2 * len(order):
        raise TypeInferenceError(f"{len(given)} pads for {len(order)} axes")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(order):
        widths[axis] = (given[i], given[len(order) + i])
    return widths


@register
class Pad(Op):
    """x with pads[i] elements before and pads[n + i] after each of `axes`; a negative width crops.

    mode: "constant" (the input `value`, default 0), "reflect" (without the edge), "edge", "wrap".  On a quantized
    tensor the constant is rounded to the grid, where 0 is exact.
    """

    name = "Pad"
    moves = True
    homogeneous = True
    inputs = "x pads value? axes?"
    attrs = {"mode": "constant"}
    shape_inputs = (1, 3)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if attrs["mode"] not in MODES:
            raise TypeInferenceError(f"mode {attrs['mode']!r} is unknown")
        widths = pad_widths(x.rank, const(consts, 1, "pads"), optional_const(types, consts, 3, "axes"))
        shape = [d + a + b for d, (a, b) in zip(ints(x.shape), widths, strict=True)]
        if any(d < 0 for d in shape):
            raise TypeInferenceError(f"pads {widths} crop more than {x} has")
        for d, (a, b) in zip(ints(x.shape), widths, strict=True):
            if attrs["mode"] == "reflect" and max(a, b) >= max(d, 1):
                raise TypeInferenceError(f"an axis of {d} cannot be reflected {max(a, b)} elements far")
        return [TensorType(x.dtype, tuple(shape))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, value = np.asarray(inputs[0]), arg(inputs, 2)
        widths = pad_widths(x.ndim, inputs[1], arg(inputs, 3))
        cuts = tuple(slice(max(-a, 0), d - max(-b, 0)) for d, (a, b) in zip(x.shape, widths, strict=True))
        grow = [(max(a, 0), max(b, 0)) for a, b in widths]
        if attrs["mode"] == "constant":
            fill = 0 if value is None else np.reshape(value, -1)[0]
            return (np.pad(x[cuts], grow, constant_values=fill),)
        return (np.pad(x[cuts], grow, mode=MODES[attrs["mode"]]),)  # type: ignore[call-overload]

    def to_integer(self, low: Lowering, node: Node) -> None:
        form, fill = low.form(node.input(0)), node.optional(2)
        pads, axes = low.real_constant(node.input(1)), node.optional(3)
        value = 0.0 if fill is None else float(np.reshape(low.real_constant(fill), -1)[0])
        if isinstance(form, Fixed):
            order = None if axes is None else low.real_constant(axes)
            low.set(node.output, Fixed(self.reference(node.attrs, form.data, pads, np.asarray(value), order)[0]))
            return
        where = [parameter(low, node.input(1)), parameter(low, axes)]

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            on_grid = np.asarray(int(value), x.dtype.numpy)
            if quant is not None:
                on_grid = quant.quantize(np.clip(np.asarray(value), bounds.lo, bounds.hi))
            constant = low.graph.add_constant(f"{names[0]}.value", on_grid, x.dtype)
            inputs = [x, where[0], constant if node.attrs["mode"] == "constant" else None, where[1]]
            return [low.graph.add_node("Pad", inputs, node.attrs, outputs=names, quant=quant).output]

        move_all(low, node, 1, move)

    def mixes_channels(self, node: Node) -> str | None:
        if not _pads_space_with_zeros(node, node.input(0).type.rank):
            return f"{node} pads with something else than zeros, or pads channels"
        return None


def _pads_space_with_zeros(node: Node, rank: int) -> bool:
    pads, value = node.input(1).data, node.optional(2)
    if node.attrs["mode"] != "constant" or pads is None or node.optional(3) is not None:
        return False
    if value is not None and (value.data is None or value.data.any()):
        return False
    return not any(int(pads[i]) or int(pads[rank + i]) for i in (0, 1))
