"""Float arithmetic of two or more tensors, and how it leaves the float world.

With a constant operand it is an affine map (affine.py), of one tensor with itself a table, of two activations one
qir.Add or qir.Mul.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError
from ..lowering import Bounds, Clamped, Deferred, Fixed, Form, Lowering
from ..types import Array, DType, QuantParams
from .affine import affine, emit_add, emit_mul, product_bound, wide_grid
from .base import register
from .division import quotient
from .elementwise import Elementwise
from .halves import is_wide
from .linear import LIMIT
from .requantize import quant_of
from .table import WIDEST, Mapped, as_mapped, combine, lower_unary

if TYPE_CHECKING:
    from ..graph import Node, Value

Reals = NDArray[np.float64]


def lower_sum(low: Lowering, node: Node, signs: tuple[float, float]) -> None:
    """signs[0] * a + signs[1] * b."""
    a, b = low.form(node.input(0)), low.form(node.input(1))
    if isinstance(a, Fixed) and isinstance(b, Fixed):
        low.set(node.output, Fixed(signs[0] * a.data + signs[1] * b.data))
    elif isinstance(b, Fixed):
        low.set(node.output, affine(low, node, a, np.asarray(signs[0]), signs[1] * b.data, node.input(0)))
    elif isinstance(a, Fixed):
        low.set(node.output, affine(low, node, b, np.asarray(signs[1]), signs[0] * a.data, node.input(1)))
    else:
        same = _of_one_tensor(a, b, lambda x, y: signs[0] * x + signs[1] * y)
        if same is not None:
            low.set(node.output, same)
            return
        x, y = per_tensor(low, node, 0), per_tensor(low, node, 1)
        low.set(
            node.output,
            Deferred(lambda target, bounds, name: emit_add(low, x, y, *signs, target, bounds, name)),
        )


def per_tensor(low: Lowering, node: Node, index: int) -> Value:
    """A quantized operand with one scale.  Raises LoweringError."""
    x = low.quantized(node.input(index))
    if quant_of(x).per_channel:
        raise LoweringError(
            f"operand {x.name!r} has a scale for each channel", where=str(node),
            hint="insert a QuantizeLinear/DequantizeLinear pair before this operator",
        )  # fmt: skip
    return x


def narrower(low: Lowering, x: Value) -> Value:
    """A 16-bit tensor with a zero point on a grid about 0, so that two of them can be multiplied in int32."""
    q = quant_of(x)
    if not is_wide(x) or not q.zero_point[0]:
        return x
    reach = max(x.dtype.hi - q.zero_point[0], q.zero_point[0] - x.dtype.lo)
    grid = QuantParams((q.scale[0] * reach / DType.INT16.hi,), (0,), DType.INT16)
    return low.requantize(x, grid, Bounds(), f"{x.name}.symmetric")


def _of_one_tensor(a: Form, b: Form, f: Callable[[Array, Array], Array]) -> Form | None:
    """f(a, b) as a table where both are functions of one narrow tensor (x * sigmoid(x))."""
    bits = WIDEST if isinstance(a, Mapped) or isinstance(b, Mapped) else 8
    left, right = as_mapped(a, bits), as_mapped(b, bits)
    return combine(left, right, f) if left is not None and right is not None else None


@register
class Add(Elementwise):
    """y = a + b, with NumPy broadcasting"""

    name = "Add"
    additive = True
    affine = True
    commutative = True
    inputs = "a b"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.add(inputs[0], inputs[1]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_sum(low, node, (1.0, 1.0))


@register
class Sub(Elementwise):
    """y = a - b, with NumPy broadcasting"""

    name = "Sub"
    additive = True
    affine = True
    inputs = "a b"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.subtract(inputs[0], inputs[1]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_sum(low, node, (1.0, -1.0))


@register
class Mul(Elementwise):
    """y = a * b, with NumPy broadcasting"""

    name = "Mul"
    affine = True
    commutative = True
    inputs = "a b"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.multiply(inputs[0], inputs[1]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        a, b = low.form(node.input(0)), low.form(node.input(1))
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            low.set(node.output, Fixed(a.data * b.data))
            return
        for form, other, index in ((a, b, 0), (b, a, 1)):
            if isinstance(other, Fixed):
                low.set(node.output, affine(low, node, form, other.data, np.zeros(()), node.input(index)))
                return
        same = _of_one_tensor(a, b, np.multiply)
        if same is not None:
            low.set(node.output, same)
            return
        x, y = per_tensor(low, node, 0), per_tensor(low, node, 1)
        if product_bound(x, y) >= LIMIT:
            x, y = (narrower(low, v) for v in (x, y))
        low.set(node.output, Deferred(lambda target, bounds, name: emit_mul(low, x, y, target, bounds, name)))


@register
class Div(Elementwise):
    """y = a / b, with NumPy broadcasting; integers truncate towards zero.  On integers b is a constant or positive."""

    name = "Div"
    affine = True
    float_only = True
    inputs = "a b"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b = inputs
        if np.asarray(a).dtype.kind == "f":
            return (np.divide(a, b),)
        if np.any(np.asarray(b) == 0):
            raise ValueError("integer division by zero")
        return ((np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.asarray(a).dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        a, b = low.form(node.input(0)), low.form(node.input(1))
        with np.errstate(all="ignore"):
            if isinstance(b, Fixed):
                if isinstance(a, Fixed):
                    low.set(node.output, Fixed(a.data / b.data))
                    return
                if not b.data.all():
                    raise LoweringError("divides by a constant that is zero", where=str(node))
                low.set(node.output, affine(low, node, a, 1.0 / b.data, np.zeros(()), node.input(0)))
                return
        fixed = float(a.data.reshape(())) if isinstance(a, Fixed) and a.data.size == 1 else None
        mapped = as_mapped(b)
        if fixed is not None and mapped is not None:
            low.set(node.output, mapped.map(lambda r: fixed / r))
            return
        same = None if isinstance(a, Fixed) else _of_one_tensor(a, b, np.divide)
        if same is not None:
            low.set(node.output, same)
            return
        low.set(node.output, quotient(low, node, node.input(0), node.input(1)))


@register
class Pow(Elementwise):
    """y = a ** b; on integers b is a constant number: a table"""

    name = "Pow"
    float_only = True
    inputs = "a b"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b = inputs
        return (np.power(a.astype(np.float64), np.asarray(b, np.float64)).astype(a.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        power = low.real_constant(node.input(1))
        if power.size != 1:
            raise LoweringError("raises to a power that is no single number", where=str(node))
        exponent = float(power.reshape(()))
        form = low.form(node.input(0))
        if isinstance(form, Fixed):
            low.set(node.output, Fixed(form.data**exponent))
            return
        lower_unary(low, node, lambda r: np.power(r, exponent))


class _Variadic(Elementwise):
    inputs = "xs*"

    def lower_total(self, low: Lowering, node: Node, factor: float) -> None:
        """factor * (sum of the inputs): qir.Add, intermediate sums on an int32 grid finer than the output's."""
        forms = [low.form(node.input(i)) for i in range(len(node.inputs))]
        constant = np.asarray(sum((f.data * factor for f in forms if isinstance(f, Fixed)), np.zeros(())))
        rest = [i for i, f in enumerate(forms) if not isinstance(f, Fixed)]
        if not rest:
            low.set(node.output, Fixed(constant))
            return
        if len(rest) == 1:
            form = forms[rest[0]]
            low.set(node.output, affine(low, node, form, np.asarray(factor), constant, node.input(rest[0])))
            return
        xs = [per_tensor(low, node, i) for i in rest]
        if constant.any():
            raise LoweringError("adds several activations and a constant", where=str(node), hint="run passes.Simplify")

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            total, scale = xs[0], factor
            for i, x in enumerate(xs[1:], start=1):
                last = i == len(xs) - 1
                grid, limits = (target, bounds) if last else (wide_grid(target), Bounds())
                total = emit_add(low, total, x, scale, factor, grid, limits, name if last else f"{name}.sum{i}")
                scale = 1.0
            return total

        low.set(node.output, Deferred(build))


@register
class Sum(_Variadic):
    """y = x_1 + ... + x_n, with NumPy broadcasting"""

    name = "Sum"
    additive = True

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return (np.asarray(total),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        self.lower_total(low, node, 1.0)


@register
class Mean(_Variadic):
    """y = (x_1 + ... + x_n) / n, with NumPy broadcasting"""

    name = "Mean"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return (np.asarray(total / total.dtype.type(len(inputs))),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        self.lower_total(low, node, 1.0 / len(node.inputs))


class _Extremum(Elementwise):
    """On integers: constants become limits or tables, activations meet on the output's grid in qir.Max or qir.Min."""

    limits = True
    commutative = True
    inputs = "xs*"
    smallest: bool

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        pick = np.minimum if self.smallest else np.maximum
        best = inputs[0]
        for x in inputs[1:]:
            best = pick(best, x)
        return (np.asarray(best),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        form = low.form(node.input(0))
        for i in range(1, len(node.inputs)):
            form = self._pair(low, node, form, low.form(node.input(i)))
        low.set(node.output, form)

    def _pair(self, low: Lowering, node: Node, a: Form, b: Form) -> Form:
        pick = np.minimum if self.smallest else np.maximum
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            return Fixed(pick(a.data, b.data))
        for form, other in ((a, b), (b, a)):
            if isinstance(other, Fixed) and other.data.size == 1:
                limit = float(other.data.reshape(()))
                return Clamped(form, Bounds(hi=limit) if self.smallest else Bounds(lo=limit))

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            x, y = (f.emit(low, target, bounds, f"{name}.{side}") for f, side in ((a, "a"), (b, "b")))
            op = "qir.Min" if self.smallest else "qir.Max"
            return low.graph.add_node(op, [x, y], outputs=[name], quant=target).output

        return Deferred(build)


@register
class Max(_Extremum):
    """y = max(x_1, ..., x_n), with NumPy broadcasting"""

    name = "Max"
    smallest = False


@register
class Min(_Extremum):
    """y = min(x_1, ..., x_n), with NumPy broadcasting"""

    name = "Min"
    smallest = True
