"""Gemm and MatMul on their way to qir.MatMul (one weight operand) or qir.MatMulActivations (two activations)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError, OverflowProofError, TypeInferenceError
from ..lowering import Fixed, Lowering, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .affine import lower_affine
from .base import Op, dim_at, elements, register
from .halves import halves, is_wide, joined_halves, linear_in_halves
from .intervals import longest
from .linear import LIMIT, LinearWeights, fold
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value


def matmul_shape(a: TensorType | None, b: TensorType | None) -> tuple[int, ...]:
    """Shape of NumPy's matmul.  Raises TypeInferenceError."""
    assert a is not None and b is not None
    x, y = [int(d) for d in a.shape], [int(d) for d in b.shape]
    if not x or not y:
        raise TypeInferenceError("a scalar cannot be multiplied as a matrix")
    left, right = ([1, *x] if len(x) == 1 else x), ([*y, 1] if len(y) == 1 else y)
    if left[-1] != right[-2]:
        raise TypeInferenceError(f"{a} and {b} differ in the summed size")
    batch = np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2]))
    return (*batch, *left[-2:-1][: len(x) > 1], *right[-1:][: len(y) > 1])


@register
class MatMul(Op):
    """y = a @ b, with NumPy's rules for batches and vectors"""

    name = "MatMul"
    linear = True
    weights = 1
    trained = True
    inputs = "a b"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        assert types[0] is not None
        return [TensorType(types[0].dtype, matmul_shape(types[0], types[1]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.matmul(inputs[0], inputs[1]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        a, b = node.input(0), node.input(1)
        out = node.output.name
        left, right = low.form(a), low.form(b)
        if isinstance(right, Fixed) and right.data.ndim == 2:
            low.set(node.output, Quantized(weights_right(low, node, low.quantized(a), right, out)))
        elif isinstance(left, Fixed) and left.data.ndim == 2 and b.type.rank >= 2:
            # (W x) = (x^T W^T)^T
            x = swap_last(low, low.quantized(b), f"{out}.x_transposed")
            acc = weights_right(low, node, x, transposed(left), f"{out}.transposed")
            low.set(node.output, Quantized(swap_last(low, acc, f"{out}.acc")))
        else:
            low.set(node.output, Quantized(two_activations(low, node, low.quantized(a), low.quantized(b), out)))

    def macs(self, node: Node) -> int:
        return elements(node.output) * dim_at(node.input(0).shape[-1], 1)


@register
class Gemm(Op):
    """y = alpha A' B' + beta C, A' = A or A^T, B' = B or B^T, C broadcast to y"""

    name = "Gemm"
    linear = True
    weights = 1
    trained = True
    inputs = "a b c?"
    attrs = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        a, b, c = types[0], types[1], types[2] if len(types) > 2 else None
        assert a is not None and b is not None
        if a.rank != 2 or b.rank != 2:
            raise TypeInferenceError(f"Gemm takes matrices, not {a} and {b}")
        m, k = a.shape[:: -1 if attrs["transA"] else 1]
        k2, n = b.shape[:: -1 if attrs["transB"] else 1]
        if k != k2:
            raise TypeInferenceError(f"{a} and {b} differ in the summed size")
        shape = (int(m), int(n))
        if c is not None and np.broadcast_shapes(shape, tuple(int(d) for d in c.shape)) != shape:
            raise TypeInferenceError(f"C {c} does not broadcast to {list(shape)}")
        return [TensorType(a.dtype, shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b, c = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        kind = a.dtype.type
        y = np.matmul(a.T if attrs["transA"] else a, b.T if attrs["transB"] else b)
        y = y if attrs["alpha"] == 1 else kind(attrs["alpha"]) * y
        if c is None:
            return (y,)
        return (y + (c if attrs["beta"] == 1 else kind(attrs["beta"]) * c),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        attrs, out = node.attrs, node.output.name
        a, b = node.input(0), node.input(1)
        left, right = low.form(a), low.form(b)
        c = node.optional(2)
        offset = np.zeros(()) if c is None else low.real_constant(c) * float(attrs["beta"])
        alpha = float(attrs["alpha"])
        row = offset.ndim < 2 or len(offset) == 1
        columns = offset.reshape(-1) if row or offset.size == 1 else None
        if isinstance(right, Fixed):
            x = low.quantized(a)
            x = swap_last(low, x, f"{out}.a_transposed") if attrs["transA"] else x
            w = scaled(low, node, transposed(right) if attrs["transB"] else right, alpha)
            acc = Quantized(weights_right(low, node, x, w, out, columns))
            alpha = 1.0
        elif isinstance(left, Fixed):
            x = low.quantized(b)
            x = x if attrs["transB"] else swap_last(low, x, f"{out}.b_transposed")
            w = scaled(low, node, left if attrs["transA"] else transposed(left), alpha)
            acc = Quantized(swap_last(low, weights_right(low, node, x, w, f"{out}.transposed"), f"{out}.acc"))
            alpha, columns = 1.0, None
        else:
            x, y = low.quantized(a), low.quantized(b)
            x = swap_last(low, x, f"{out}.a_transposed") if attrs["transA"] else x
            y = swap_last(low, y, f"{out}.b_transposed") if attrs["transB"] else y
            acc, columns = Quantized(two_activations(low, node, x, y, out)), None
        if alpha == 1.0 and (columns is not None or not offset.any()):
            low.set(node.output, acc)
        else:
            lower_affine(low, node, acc, np.asarray(alpha), offset)

    def macs(self, node: Node) -> int:
        inner = node.input(0).shape[-2 if node.attrs["transA"] else -1]
        return elements(node.output) * dim_at(inner, 1)


def transposed(form: Fixed) -> Fixed:
    """The transposed matrix, its quantization axis following."""
    q = form.quant
    if q is not None and q.axis is not None:
        q = replace(q, axis=1 - q.axis % 2)
    return Fixed(form.data.T, None if form.ints is None else np.ascontiguousarray(form.ints.T), q)


def scaled(low: Lowering, node: Node, form: Fixed, factor: float) -> Fixed:
    """A quantized constant times a number: its scale changes, and for a negative one its integers' signs."""
    q, ints = form.quant, form.ints
    if factor == 1.0 or q is None or ints is None:
        return form
    if factor == 0:
        return Fixed(form.data * 0, ints * 0 + q.zero_point[0], q)
    if factor < 0:
        if any(q.zero_point) or not q.dtype.is_signed or (ints.size and int(ints.min()) == q.dtype.lo):
            raise LoweringError(f"factor {factor} on weights that cannot be negated", where=str(node))
        ints = -ints
    return Fixed(form.data * factor, ints, replace(q, scale=tuple(abs(factor) * s for s in q.scale)))


def swap_last(low: Lowering, x: Value, name: str) -> Value:
    """Last two axes exchanged."""
    rank = x.type.rank
    perm = [*range(rank - 2), rank - 1, rank - 2]
    q = x.quant
    if q is not None and q.axis is not None:
        q = replace(q, axis=perm.index(q.axis % rank))
    return low.graph.add_node("Transpose", [x], {"perm": perm}, outputs=[name], quant=q).output


def weights_right(
    low: Lowering, node: Node, x: Value, w: Fixed, name: str, bias: NDArray[np.float64] | None = None
) -> Value:
    """acc = x @ w + bias for constant w (K, N), as one qir.MatMul.  Raises LoweringError, OverflowProofError."""
    if w.ints is None or w.quant is None:
        raise LoweringError(
            "weights are not quantized constants", where=str(node),
            hint="insert a QuantizeLinear/DequantizeLinear pair on them (passes.InsertQdq does)",
        )  # fmt: skip
    if w.quant.per_channel and w.quant.axis != 1:
        raise LoweringError("weights are quantized along the summed axis", where=str(node))
    if len(set(w.quant.zero_point)) != 1:
        raise LoweringError("weights have a zero point for each channel", where=str(node))
    reals = np.broadcast_to(np.zeros(1) if bias is None else bias, (w.ints.shape[1],))
    g, last, where = low.graph, x.type.rank - 1, str(node)

    def emit(source: Value, folded: LinearWeights, stem: str) -> Value:
        return g.add_node(
            "qir.MatMul", [source, *folded.constants(g, stem)], {"weight_zero_point": folded.zero_point},
            outputs=[f"{stem}.acc"], quant=low.accumulator_quant(quant_of(source), folded.quant, axis=last),
        ).output  # fmt: skip

    if is_wide(x) and not quant_of(x).per_channel:
        return linear_in_halves(low, x, w.ints, w.quant, reals, 1, last, where, name, emit)
    return emit(x, fold(low, w.ints, w.quant, reals, narrow_operand(x, node), 1, where), name)


def narrow_operand(x: Value, node: Node) -> QuantParams:
    """Quantization of a matrix product's operand.  Raises LoweringError beyond 8 bits or with several scales."""
    q = quant_of(x)
    if q.per_channel or q.dtype.bits > 8:
        raise LoweringError(
            f"operand {x.name!r} is {x.type}; products of matrices take 8 bits, one scale", where=str(node),
            hint="quantize it to 8 bits before this operator (passes.InsertQdq does)",
        )  # fmt: skip
    return q


def two_activations(low: Lowering, node: Node, a: Value, b: Value, name: str) -> Value:
    """acc = sum (a - z_a)(b - z_b)   [docs/arithmetic.md 3].  Raises OverflowProofError where the sum is too long.

    An operand of 16 bits is two of 8.
    """
    return _product(low, node, a, b, name)[0]


def _product(low: Lowering, node: Node, a: Value, b: Value, name: str) -> tuple[Value, int]:
    """(accumulator, a bound of its size)."""
    for side, wide in ((0, a), (1, b)):
        if is_wide(wide) and not quant_of(wide).per_channel:
            pairs = [(half, b) if side == 0 else (a, half) for half in halves(low, wide)]
            stems = (f"{name}.high", f"{name}.low")
            parts = [_product(low, node, *pair, stem) for pair, stem in zip(pairs, stems, strict=True)]
            accs, bounds = [p[0] for p in parts], [p[1] for p in parts]
            return joined_halves(low, accs, [quant_of(v) for v in accs], bounds, name)
    qa, qb = narrow_operand(a, node), narrow_operand(b, node)
    length = longest(a.shape[-1])
    if length is None:
        raise LoweringError("sums over the batch", where=str(node), hint="bind the batch to a number when loading")
    worst = length * span(qa) * span(qb)
    if worst >= LIMIT:
        raise OverflowProofError(f"{length} products of up to {span(qa) * span(qb)} do not fit int32", where=str(node))
    quant = QuantParams((qa.scale[0] * qb.scale[0],), (0,), DType.INT32)
    attrs = {"a_zero_point": qa.zero_point[0], "b_zero_point": qb.zero_point[0]}
    made = low.graph.add_node("qir.MatMulActivations", [a, b], attrs, outputs=[f"{name}.acc"], quant=quant).output
    return made, worst


def span(q: QuantParams) -> int:
    """Largest |q - zero_point| of a per-tensor quantization."""
    return max(q.dtype.hi - q.zero_point[0], q.zero_point[0] - q.dtype.lo)
