"""What an operator is. One class an operator: schema, shapes, meaning, way out of the float world, ONNX form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import LoweringError, ModelError, TypeInferenceError, UnsupportedError, named
from ..sizes import Sizes, dim_at, symbols_of
from ..sizes.fitting import explain, probe
from ..types import Array, Dim, DType, TensorType
from .attributes import taken

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body
    from ..lowering import Lowering


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""Default of an attribute that must be given."""


@dataclass(frozen=True)
class OperandKind:
    """What an input of an integer operator may be: an integer of at most `bits`, or just of `dtype`.

    constant: or decided by open sizes alone.
    """

    bits: int = 32
    constant: bool = False
    dtype: DType | None = None

    def objection(self, value: Value) -> str | None:
        """Why the value is none, or None where it is."""
        kind = value.dtype
        if self.dtype is not None:
            if kind is not self.dtype:
                return f"{value.name!r} is {kind}, {self.dtype} expected"
        elif not kind.is_integer or kind.bits > self.bits:
            return f"{value.name!r} is {kind}, an integer of at most {self.bits} bits expected"
        if self.constant and value.data is None and not follows_sizes(value):
            return f"{value.name!r} is no constant"
        return None


def follows_sizes(value: Value) -> bool:
    """Whether shapes and constants alone decide a value: it is a constant once the sizes are known."""
    from .probing import known  # it evaluates operators, so it needs the registry

    return value.producer is not None and known(value, probe(value.graph.symbols, 0), {}) is not None


INTEGER, SIXTEEN_BITS, EIGHT_BITS = OperandKind(), OperandKind(16), OperandKind(8)
MASK = OperandKind(dtype=DType.BOOL)
WEIGHTS = OperandKind(8, constant=True)
INTEGER_CONSTANT = OperandKind(constant=True)
INT32_CONSTANT, INT64_CONSTANT = (OperandKind(constant=True, dtype=d) for d in (DType.INT32, DType.INT64))

Interval = tuple[int, int]
"""The least and the greatest that an integer can be."""


class Op(ABC):
    """An operator. Subclasses are registered by `@register` and used through their one instance.

    inputs:  names, "?" marks optional ones, "*" a variadic tail; outputs likewise.
    attrs:   name -> default (REQUIRED where there is none; None where absent means something).
    Float operators follow ONNX opset 21 to the letter, so that a float or QDQ graph exports as it stands.
    """

    name: ClassVar[str]
    inputs: ClassVar[str]
    outputs: ClassVar[str] = "y"
    attrs: ClassVar[Mapping[str, Any]] = {}
    shape_inputs: ClassVar[Sequence[int]] = ()
    """Inputs whose data the output's shape depends on; `infer` finds them in `consts`, computed if need be."""
    reads_shape_only: ClassVar[bool] = False
    """The output depends on the inputs' shapes alone (Shape, Size)."""

    # -- facts. Passes and executors ask for these, and keep no lists of operator names that restate them -----------
    linear: ClassVar[bool] = False
    """A sum of products of two inputs: its work is multiply-accumulates, counted by `macs`."""
    weights: ClassVar[int | None] = None
    """Of a linear operator: the input that holds the weights where it is a constant."""
    trained: ClassVar[bool] = False
    """Its constants are trained parameters: an infinity there is an accident, elsewhere it may be a mask."""
    additive: ClassVar[bool] = False
    """A sum or difference of its operands: two rescaled operands meet in one accumulator."""
    affine: ClassVar[bool] = False
    """x -> a x + b, elementwise or for each channel, where all other inputs are constants."""
    pools: ClassVar[bool] = False
    """A sum or mean over many elements of one tensor."""
    normalizes: ClassVar[bool] = False
    """Divides by a mean of squares or a sum of exponentials of its input: reads it as wide as there is, since outliers
    decide the grid."""
    clamps: ClassVar[bool] = False
    """min(max(x, lo), hi): the quantizer behind it can do it."""
    limits: ClassVar[bool] = False
    """Elementwise minimum or maximum of tensors: with a constant, a clamp with limits that broadcast."""
    moves: ClassVar[bool] = False
    """Every output element is one of input 0 (or padding), whatever the values are: it stays on its grid."""
    keeps_order: ClassVar[bool] = False
    """Of an operator that moves: the elements stay as they lie in memory, only the shape is another."""
    chooses: ClassVar[bool] = False
    """Every output element is one of input 0, chosen by comparing: it stays on its grid."""
    orders: ClassVar[bool] = False
    """Only the order of the input's values matters to the result."""
    commutative: ClassVar[bool] = False
    """f(a, b) = f(b, a)."""
    pointwise: ClassVar[bool] = False
    """y[i] = f(x[i]), one f for all elements: commutes with everything that moves."""
    homogeneous: ClassVar[bool] = False
    """Known to satisfy f(s x) = s f(x), s > 0 for each channel (axis 1), where `mixes_channels` has no objection."""
    nonnegative: ClassVar[bool] = False
    """Known to give no negative number."""
    flat: ClassVar[bool] = False
    """Piecewise constant, or about shapes or order: its gradient is zero."""
    float_only: ClassVar[bool] = False
    """Has no place in an integer graph, whatever its dtype."""
    accumulates: ClassVar[bool] = False
    """An integer operator that adds, subtracts or multiplies in a fixed width: `overflows` is its proof."""
    operands: ClassVar[Mapping[str, OperandKind]] = {}
    """Of an integer operator: what its inputs may be, by name.  Executors rely on it, `verify` checks it."""
    border: ClassVar[bool] = False
    """Stands between reals and integers."""

    @property
    def is_integer_op(self) -> bool:
        """Exports as a model-local function of domain `qir`."""
        return self.name.startswith("qir.")

    def complete(self, attrs: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Attributes with defaults filled in.

        Raises UnsupportedError on an unknown or missing one, ModelError on a value that it cannot have.
        """
        unknown = set(attrs) - set(self.attrs)
        if unknown:
            raise UnsupportedError(f"unknown attribute {sorted(unknown)[0]!r}", where=where)
        full = {**self.attrs, **attrs}
        for key, value in full.items():
            if value is REQUIRED:
                raise UnsupportedError(f"attribute {key!r} is missing", where=where)
            if key in attrs and not (value is None and self.attrs[key] is None):
                if self.attrs[key] is None and isinstance(value, list) and not value and key != "axes":
                    full[key] = None  # exporters write empty lists for what they leave open
                    continue
                try:
                    full[key] = taken(key, value)
                except ValueError as error:
                    raise ModelError(str(error), where=where) from None
        return full

    def settle(self, node: Node) -> None:  # noqa: B027  # optional
        """Write into a new node's attributes what its inputs' types imply and NumPy arrays do not show (4 bits)."""

    @abstractmethod
    def infer(
        self,
        attrs: Mapping[str, Any],
        types: Sequence[TensorType | None],
        consts: Sequence[Array | None],
    ) -> list[TensorType]:
        """Output types. Shapes are all ints here; `consts` holds the data of constant inputs (else None).

        A `shape_inputs` entry that is computed from shapes (a Shape subgraph) has its data there too.
        """

    @abstractmethod
    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        """The meaning, in NumPy. Absent optional inputs are None."""

    def to_integer(self, low: Lowering, node: Node) -> None:
        """Record the integer form of the node's outputs.  Raises LoweringError where there is none."""
        raise LoweringError("has no integer form", where=str(node), hint="see `qir inspect` for what is supported")

    def needs_function(self, node: Node, opset: int) -> bool:
        """Whether export writes the node as a call of a model-local function of domain `qir` of the same name.

        So are all integer operators, standard ones that are newer than the opset, and those for whose dtypes
        runtimes have no kernel (Pad on int16).
        """
        return self.is_integer_op or getattr(self, "standard_since", 0) > opset

    def function_body(self, body: Body, node: Node) -> None:
        """Write the standard-ONNX form of an integer operator (domain `qir` only)."""
        raise UnsupportedError("is a standard operator and has no function body", where=str(node))

    def macs(self, node: Node) -> int:
        """Multiply-accumulates of a linear node, for a batch of one (a fixed batch counts in full); 0 for others."""
        return 0

    def mixes_channels(self, node: Node) -> str | None:
        """Why a homogeneous node does not hand on a factor of each channel of input 0, or None where it does."""
        return None

    def never_negative(self, node: Node) -> bool:
        """Whether the node is known to give no negative number."""
        return self.nonnegative

    def accumulator_interval(self, node: Node) -> Interval | None:
        """The least and the greatest sum that an int32 result can be; None where the operator does not say."""
        return None

    def overflows(self, node: Node) -> Iterator[str]:
        """The proof of an integer operator that accumulates: a sentence for each way to leave its width."""
        return iter(())

    def infer_types(self, node: Node) -> list[TensorType]:
        """`infer` with open sizes: what comes out at several sizes of each symbol is explained by what goes in."""
        if not (follows := open_sizes(self, node)):
            return self.infer_at(node, {})
        symbols = node.graph.symbols
        runs: dict[int, list[TensorType]] = {}

        def at(point: int) -> list[TensorType]:
            if point not in runs:
                runs[point] = self.infer_at(node, probe(symbols, point))
            return runs[point]

        def known(points: int) -> list[tuple[Dim, list[int]]]:
            return [(d, [dim_at(d, probe(symbols, i)) for i in range(points)]) for d in follows]

        def shapes(point: int) -> list[tuple[int, ...]]:
            return [tuple(int(d) for d in t.shape) for t in at(point)]

        dims = explain(shapes, known, str(node))
        return [replace(t, shape=s) for t, s in zip(at(0), dims, strict=True)]

    def infer_at(self, node: Node, sizes: Sizes) -> list[TensorType]:
        """`infer` at given sizes of the symbols.  Raises what it raises, naming the node."""
        from .probing import known_inputs  # it evaluates operators, so it needs the registry

        with named(TypeInferenceError, node, lambda: f"inputs {listed(node)} do not fit"):
            types = [type_at(v.type, sizes) if v is not None else None for v in node.inputs]
            return self.infer(node.attrs, types, known_inputs(node, self.shape_inputs, sizes))


def listed(node: Node) -> str:
    """The types of a node's inputs, for messages."""
    return ", ".join("-" if v is None else str(v.type) for v in node.inputs)


def open_sizes(op: Op, node: Node) -> list[Dim]:
    """The sizes that the node's output types may follow: open ones of its inputs, and all symbols where a shape input
    is computed."""
    found = dict.fromkeys(d for v in node.inputs if v is not None for d in v.shape if isinstance(d, str))
    symbols = [s for d in found for s in sorted(symbols_of(d))]
    if any(v is not None and v.data is None for v in map(node.optional, op.shape_inputs)):
        symbols = list(node.graph.symbols)
    return list(dict.fromkeys((*found, *symbols)))


def type_at(type: TensorType, sizes: Sizes) -> TensorType:
    """The type at given sizes of the symbols."""
    if all(isinstance(d, int) for d in type.shape):
        return type
    return replace(type, shape=tuple(dim_at(d, sizes) for d in type.shape))


def elements(value: Value, at: int | Sizes = 1) -> int:
    """How many elements a tensor has at a batch size, or at given sizes of all symbols."""
    return math.prod(dim_at(d, at) for d in value.shape)


REGISTRY: dict[str, Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: one instance into the registry, under its name."""
    if cls.name in REGISTRY:
        raise ValueError(f"operator {cls.name} is registered twice")
    REGISTRY[cls.name] = cls()
    return cls


def op_of(name: str) -> Op:
    """The operator called `name`.  Raises UnsupportedError with the nearest known names."""
    try:
        return REGISTRY[name]
    except KeyError:
        near = get_close_matches(name, REGISTRY, 3)
        hint = f"did you mean {', '.join(near)}?" if near else None
        raise UnsupportedError(f"operator {name!r} is not supported", hint=hint) from None


def least_outputs(name: str, given: int) -> int:
    """How many outputs a node of operator `name` must have, where it was written with `given`; 1 if it is unknown."""
    words = REGISTRY[name].outputs.split() if name in REGISTRY else ["y"]
    return given if words[-1].endswith("*") else sum(not w.endswith("?") for w in words)
