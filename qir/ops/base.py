"""What an operator is. One class an operator: schema, shapes, meaning, way out of the float world, ONNX form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import LoweringError, QirError, TypeInferenceError, UnsupportedError
from ..types import Array, Dim, TensorType

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body
    from ..lowering import Lowering


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""Default of an attribute that must be given."""

BATCHES = (5, 7)
"""Sizes put in place of the symbolic batch to see which output sizes follow it."""


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

    @property
    def is_integer_op(self) -> bool:
        """Exports as a model-local function of domain `qir`."""
        return self.name.startswith("qir.")

    def complete(self, attrs: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Attributes with defaults filled in.  Raises UnsupportedError on an unknown or missing one."""
        unknown = set(attrs) - set(self.attrs)
        if unknown:
            raise UnsupportedError(f"unknown attribute {sorted(unknown)[0]!r}", where=where)
        full = {**self.attrs, **attrs}
        for key, value in full.items():
            if value is REQUIRED:
                raise UnsupportedError(f"attribute {key!r} is missing", where=where)
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

    def infer_types(self, node: Node) -> list[TensorType]:
        """`infer` with a symbolic batch: probed at two batch sizes, sizes that differ follow the batch."""
        from .probing import known_inputs  # it evaluates operators, so it needs the registry

        symbolic = any(isinstance(d, str) for v in node.inputs if v is not None for d in v.shape)
        unknown = any(v is not None and v.data is None for v in map(node.optional, self.shape_inputs))
        try:
            runs = [
                self.infer(
                    node.attrs,
                    [_at(v.type, n) if v is not None else None for v in node.inputs],
                    known_inputs(node, self.shape_inputs, n),
                )
                for n in (BATCHES if symbolic or unknown else BATCHES[:1])
            ]
        except QirError as error:
            if error.where:
                raise
            raise type(error)(str(error), where=str(node)) from None
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            shapes = ", ".join("-" if v is None else str(v.type) for v in node.inputs)
            raise TypeInferenceError(f"inputs {shapes} do not fit: {error}", where=str(node)) from error
        if len(runs) == 1:
            return runs[0]
        return [merge_probes(a, b, str(node)) for a, b in zip(runs[0], runs[1], strict=True)]


def _at(type: TensorType, batch: int) -> TensorType:
    """The type with its symbolic sizes set for a batch of `batch`."""
    if all(isinstance(d, int) for d in type.shape):
        return type
    return replace(type, shape=tuple(dim_at(d, batch) for d in type.shape))


def dim_at(dim: Dim, batch: int) -> int:
    """A size at a given batch: "N" -> batch, "4*N" -> 4 * batch."""
    if isinstance(dim, int):
        return dim
    factor, _, _ = dim.rpartition("*")
    return int(factor or 1) * batch


def merge_probes(a: TensorType, b: TensorType, where: str) -> TensorType:
    """One type from what `infer` said at the two probe batches."""
    if len(a.shape) != len(b.shape):
        raise TypeInferenceError("the output's rank depends on the batch size", where=where)
    dims: list[Dim] = []
    for p, q in zip(a.shape, b.shape, strict=True):
        if p == q:
            dims.append(p)
        elif isinstance(p, int) and isinstance(q, int) and p * BATCHES[1] == q * BATCHES[0]:
            k = p // BATCHES[0]
            dims.append("N" if k == 1 else f"{k}*N")
        else:
            raise TypeInferenceError(f"an output size ({p} or {q}) is no multiple of the batch", where=where)
    return replace(a, shape=tuple(dims))


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
        from difflib import get_close_matches

        near = get_close_matches(name, REGISTRY, 3)
        hint = f"did you mean {', '.join(near)}?" if near else None
        raise UnsupportedError(f"operator {name!r} is not supported", hint=hint) from None


def least_outputs(name: str, given: int) -> int:
    """How many outputs a node of operator `name` must have, where it was written with `given`; 1 if it is unknown."""
    words = REGISTRY[name].outputs.split() if name in REGISTRY else ["y"]
    return given if words[-1].endswith("*") else sum(not w.endswith("?") for w in words)
