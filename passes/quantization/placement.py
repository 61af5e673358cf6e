"""Where quantizers go: which tensor, how wide, and which tensors share a grid.

Lingo. An *activation* is a float value that is no constant. A *need* is the interval of widths that one use of a
tensor accepts. A *root* is a tensor that gets a quantizer of its own; pass-through operators (Reshape, Slice,
MaxPool ...) only move or choose values, so their results stay on the root's grid. A value that only feeds a Relu or
Clip is *fused*: the quantizer comes after the activation, and clamps.

Each tensor is quantized at the widest need of its uses; a use that needs less gets a second, narrower quantizer
(a residual stream in int16: v -> Q16 -> {Add, Q8 -> Conv}).    [White Paper 2.3.1-2.3.2, HAWQ-V3 III-C, III-D]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.ops.reals import RealInterval, real_interval
from qir.types import DType

from .align_scales import Key, Relations

WIDE, NARROW = 16, 8
FUNCTION = 12
"""Bits of the grid that a function reads: 16 times as fine as 8, and its table still is small. Kept in int16."""

OUTPUT_CHANNELS = "output_channels"
"""graph.tables entry: output's name -> (axis, scale of each channel's 16-bit grid)."""

INPUT_CHANNELS = "input_channels"
"""Table of a graph: input name -> (axis, scales) of the 16-bit grids that its channels have, see `center_inputs`."""


@dataclass(frozen=True)
class Widths:
    """The options of `InsertQdq` that decide widths; see there."""

    activation: int = 8
    residual: int = 16
    output: int = 16
    input: int = 8
    pool: int = 8
    function: int = FUNCTION
    first_last: int = 8
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])


@dataclass(frozen=True)
class Need:
    """Least and greatest width that a use accepts."""

    least: int
    most: int


@dataclass
class QuantizerPlacement:
    """width: bits of each activation's grid (roots and what passes through).  origin: activation -> its root or Concat.
    roots: values to quantize, in topological order.  needs: of each use of an activation.
    joined: grids that a concatenation shares; computed: grids that some other operator computes with, or an output.
    positive: names of those whose small values count and that are never negative: wide grids begin at zero."""

    width: dict[Value, int]
    origin: dict[Value, Value]
    roots: list[Value]
    needs: dict[tuple[Node, int], Need]
    relations: Relations
    joined: set[Key] = field(default_factory=set[Key])
    computed: set[Key] = field(default_factory=set[Key])
    positive: set[str] = field(default_factory=set[str])

    def key(self, value: Value, bits: int) -> Key:
        """Names the grid of `value` at `bits`."""
        return (self.origin[value].name, bits)

    def at_use(self, value: Value, use: tuple[Node, int]) -> int:
        """Width at which a use takes a value."""
        need = self.needs[use]
        return min(max(self.width[value], need.least), need.most)


def is_activation(value: Value | None) -> bool:
    return value is not None and not value.is_constant and value.dtype.is_float


def passes_through(node: Node) -> bool:
    """Whether results stay on the grid of input 0."""
    if node.op == "Resize":
        return node.attrs.get("mode", "nearest") == "nearest"
    return op_of(node.op).moves or op_of(node.op).chooses


def limited(node: Node) -> Value | None:
    """The activation that a Min or Max with constants clamps, where nothing else reads it."""
    inputs = [v for v in node.inputs if v is not None and is_activation(v)]
    if not op_of(node.op).limits or len(inputs) != 1 or len(inputs[0].uses()) != 1 or inputs[0].is_output:
        return None
    return inputs[0] if inputs[0].shape == node.output.shape else None


def is_fused(value: Value) -> bool:
    """Whether a value only feeds an activation that its producer's quantizer takes over."""
    uses = value.uses()
    if value.producer is None or value.is_output or len(uses) != 1:
        return False
    node, index = uses[0]
    if (joins_layer(node) and layer_of(value)) or scales_product(node, value):
        return True
    if in_channels(value) and (op_of(node.op).affine or op_of(node.op).clamps):
        return all(v is value or v is None or v.is_constant for v in node.inputs)
    return index == 0 and op_of(node.op).clamps and all(v is None or v.is_constant for v in node.inputs[1:])


def is_share(value: Value) -> bool:
    """Whether a tensor is a softmax, whose fixed grid of 8 bits is all there is of it."""
    node = value.producer
    return node is not None and op_of(node.op).nonnegative and op_of(node.op).normalizes


def scales_channels(node: Node) -> bool:
    """Whether a node only brings the channels of a layer's input to one size: a factor of each, from a fine grid."""
    if node.op != "Mul" or not node.input(1).is_constant or node.output.is_output:
        return False
    factors = node.input(1).array()
    varied = factors.ndim > 0 and factors.size == factors.shape[-1] > 1
    return varied and all(op_of(user.op).linear and i == 0 for user, i in node.output.uses())


def layer_of(value: Value) -> bool:
    """Whether a value is the accumulator of a layer with constant weights, or one with constants folded into it."""
    node = value.producer
    if node is None:
        return False
    if weights_side(node) is not None:
        return True
    joined = joins_layer(node)
    return joined is not None and is_fused(joined) and layer_of(joined)


def scales_product(node: Node, value: Value) -> bool:
    """Whether a node multiplies a product of two activations by one positive number: its accumulator's scale does."""
    product = value.producer
    if node.op != "Mul" or product is None or product.op != "MatMul" or weights_side(product) is not None:
        return False
    factors = [v for v in node.inputs if v is not None and v.data is not None]
    return len(factors) == 1 and factors[0].array().size == 1 and bool((factors[0].array() > 0).all())


def joins_layer(node: Node) -> Value | None:
    """The activation of a factor or an offset that goes into the weights and the bias of the layer before it.

    Constants along the layer's outputs: the last axis of a product of matrices of any rank, where a Gemm has none.
    """
    if not op_of(node.op).affine or len(node.inputs) != 2:
        return None
    given = [v for v in node.inputs if v is not None]
    values, constants = [v for v in given if is_activation(v)], [v for v in given if v.is_constant]
    if len(values) != 1 or len(constants) != 1 or values[0].shape != node.output.shape or node.op == "Div":
        return None
    shape, last = constants[0].shape, values[0].shape[-1:]
    layer = values[0].producer
    if layer is None or not (layer.op == "MatMul" or joins_layer(layer) is not None):
        return None
    if node.op == "Mul" and not np.isfinite(constants[0].array()).all():
        return None
    return values[0] if all(d == 1 for d in shape[:-1]) and (shape[-1:] == last or shape[-1:] in ((), (1,))) else None


def in_channels(value: Value) -> bool:
    """Whether a value is an affine map of an input whose channels have grids of their own: it waits for the next."""
    node = value.producer
    while node is not None and op_of(node.op).affine:
        operands = [v for v in node.inputs if v is not None and is_activation(v)]
        if len(operands) != 1:
            return False
        (value,) = operands
        if value.producer is None:
            return value.name in value.graph.tables.get(INPUT_CHANNELS, {})
        node = value.producer if len(value.uses()) == 1 and not value.is_output else None
    return False


def first_and_last(graph: Graph) -> set[Node]:
    """Linear nodes with no linear node before them, and those with none after them."""
    ends: set[Node] = set()
    for forward in (True, False):
        behind: set[Node] = set()  # nodes past a linear one
        for node in graph.nodes if forward else reversed(graph.nodes):
            near = _producers(node) if forward else _consumers(node)
            past = any(n in behind for n in near)
            if op_of(node.op).linear:
                if not past:
                    ends.add(node)
                behind.add(node)
            elif past:
                behind.add(node)
    return ends


def _producers(node: Node) -> Iterable[Node]:
    return (v.producer for v in node.inputs if v is not None and v.producer is not None)


def _consumers(node: Node) -> Iterable[Node]:
    return (user for v in node.outputs for user, _ in v.uses())


def layer_bits(node: Node, ends: set[Node], widths: Widths, weight_bits: int) -> tuple[int, int]:
    """(weight bits, input bits) of a linear node."""
    if node.name in widths.layers:
        return widths.layers[node.name]
    if node in ends:
        return max(weight_bits, widths.first_last), max(widths.activation, widths.first_last)
    return weight_bits, widths.activation


RELATIVE = frozenset({"Log", "Sqrt", "Reciprocal", "Pow"})
"""Functions to which a step counts by its size beside the value: they read 16 bits, and so does what makes it."""


def fine_values(graph: Graph) -> set[Value]:
    """Tensors whose small values count: what functions of RELATIVE and quotients read, and what that is made of.

    Back through sums, products, pools and movement; through a layer where it adds up what is never negative (the
    bands of a spectrum), or reads an input of the graph.
    """
    fine: set[Value] = set()
    memo: dict[Value, RealInterval] = {}
    for node in reversed(graph.nodes):
        op, operands = op_of(node.op), [v for v in node.inputs if v is not None and is_activation(v)]
        if node.op in RELATIVE:
            if real_interval(node.input(0), memo)[0] >= 0:
                fine.update(operands)
        elif node.op == "Div" and is_activation(node.input(1)):
            fine.update(operands)
        elif not any(v in fine for v in node.outputs):
            continue
        elif op.linear:
            if weights_side(node) is not None and len(operands) == 1 and node.op != "ConvTranspose":
                (x,) = operands
                if x.producer is None or real_interval(x, memo)[0] >= 0:
                    fine.add(x)
        elif op.affine or op.additive or op.pools or op.clamps or op.limits or op.moves or op.chooses:
            fine.update(operands)
    return fine


def place(graph: Graph, widths: Widths) -> QuantizerPlacement:
    """Decide widths, roots and relations for a float graph."""
    ends, fine = first_and_last(graph), fine_values(graph)
    wanted: dict[Value, int] = {}
    needs: dict[tuple[Node, int], Need] = {}
    for node in reversed(graph.nodes):
        for value in node.outputs:
            if is_activation(value):
                wanted[value] = _wanted(value, needs, widths)
                if is_fused(value) and (node.op == "Concat" or (passes_through(node) and not op_of(node.op).chooses)):
                    # moved before its activation: keep what the clamp will cut
                    wanted[value] = max(wanted[value], widths.residual)
        for index, value in enumerate(node.inputs):
            if is_activation(value):
                needs[(node, index)] = _need(node, index, wanted, ends, widths)
                if value in fine and _reads_fine(node, fine):
                    needs[(node, index)] = Need(WIDE, WIDE)
    for value in graph.inputs:
        if is_activation(value):
            own = value.name in graph.tables.get(INPUT_CHANNELS, {})
            wanted[value] = WIDE if own else max(_wanted(value, needs, widths), widths.input)
    plan = _spread(graph, wanted, needs)
    memo: dict[Value, RealInterval] = {}
    plan.positive.update(v.name for v in fine if real_interval(v, memo)[0] >= 0 and not _is_multiplied(v))
    return plan


def _is_multiplied(value: Value) -> bool:
    """Whether a tensor, or what only moves or clamps it, is a factor of a product: two grids of 16 bits that begin at
    zero would leave int32 there."""
    stack, seen = [value], set[Value]()
    while stack:
        top = stack.pop()
        for node, _ in top.uses():
            if node.op == "Mul" and sum(is_activation(v) for v in node.inputs) > 1:
                return True
            if (passes_through(node) or op_of(node.op).clamps) and node.output not in seen:
                seen.add(node.output)
                stack += node.outputs
    return False


def _reads_fine(node: Node, fine: set[Value]) -> bool:
    """Whether a node is one of those that carry small values on, or that read them."""
    return node.op in (*RELATIVE, "Div") or any(v in fine for v in node.outputs)


def _wanted(value: Value, needs: Mapping[tuple[Node, int], Need], widths: Widths) -> int:
    """The widest that a use of the value needs at least."""
    least = [needs[use].least for use in value.uses() if use in needs]
    if value.is_output:
        least.append(widths.output)
    return max(least, default=NARROW)


def _is_only_added(value: Value) -> bool:
    """Whether a product is read by sums alone: a term of a state that is kept (the cell of an LSTM)."""
    uses = value.uses()
    return bool(uses) and not value.is_output and all(
        op_of(node.op).additive and all(is_activation(v) for v in node.inputs if v is not None) for node, _ in uses
    )  # fmt: skip


def _need(node: Node, index: int, wanted: Mapping[Value, int], ends: set[Node], widths: Widths) -> Need:
    """What one use of an activation accepts."""
    op = op_of(node.op)
    if op.linear:
        bits = layer_bits(node, ends, widths, NARROW)[1]
        if node.op == "MatMul" and weights_side(node) is None:
            bits = max(bits, NARROW) if not is_share(node.input(index)) else NARROW
        if node.op == "ConvTranspose":  # reads 8 bits
            bits = min(bits, NARROW)
        return Need(bits, bits)
    if op.affine and _is_normalized(node.output):
        return Need(WIDE, WIDE)
    if op.affine and sum(is_activation(v) for v in node.inputs) == 1:
        fine = scales_channels(node) or (node.op in ("Add", "Sub") and wanted.get(node.output, NARROW) >= WIDE)
        return Need(WIDE if fine else NARROW, WIDE)
    if op.normalizes:
        return Need(WIDE, WIDE)
    if op.additive:
        return Need(widths.residual, WIDE)
    if op.pools:
        return Need(widths.pool, WIDE)
    result = max((wanted[v] for v in node.outputs if v in wanted), default=NARROW)
    if node.op == "Concat":
        return Need(result, result)
    if passes_through(node):
        if index:
            return Need(NARROW, NARROW)
        return Need(min(result, NARROW), NARROW) if op.chooses else Need(result, WIDE)
    if op.clamps or op.orders:
        return Need(NARROW, WIDE)
    if node.op == "Mul" and _is_only_added(node.output) and widths.residual >= WIDE:
        return Need(WIDE, WIDE)
    if op.pointwise and not op.flat:
        return Need(widths.function, widths.function)
    return Need(NARROW, NARROW)


def _is_normalized(value: Value) -> bool:
    """Whether a value is normalized, and added to at most (a residual stream): what it is made from is read as wide."""
    users = [op_of(node.op) for node, _ in value.uses()]
    return any(op.normalizes for op in users) and all(op.normalizes or op.additive for op in users)


def weights_side(node: Node) -> int | None:
    """The input of a linear node that is its weights: 1; 0 where a matrix product has its constant on the left."""
    if not op_of(node.op).linear or len(node.inputs) < 2:
        return None
    if node.input(1).is_constant:
        return 1
    return 0 if node.op in ("MatMul", "Gemm") and node.input(0).is_constant else None


def _spread(graph: Graph, wanted: dict[Value, int], needs: dict[tuple[Node, int], Need]) -> QuantizerPlacement:
    """Forward: what passes through keeps its root's width; operands of a concatenation share its grid."""
    width, origin = dict(wanted), {v: v for v in wanted}
    roots = [v for v in graph.inputs if v in wanted]
    plan = QuantizerPlacement(width, origin, roots, needs, Relations())
    for node in graph.nodes:
        results = [v for v in node.outputs if v in wanted]
        for index, value in enumerate(node.inputs):
            if value in origin and (node.op == "Concat" or not passes_through(node)):
                key = plan.key(value, plan.at_use(value, (node, index)))
                (plan.joined if node.op == "Concat" else plan.computed).add(key)
        if not results:
            continue
        source = node.inputs[0] if node.inputs else None
        if node.op == "Concat":
            for index, value in enumerate(node.inputs):
                if value is not None and value in origin:
                    bits = plan.at_use(value, (node, index))
                    plan.relations.shared(plan.key(value, bits), plan.key(results[0], width[results[0]]))
                elif value is not None and value.data is not None and value.dtype.is_float:
                    lo, hi = float(np.min(value.data)), float(np.max(value.data))
                    plan.relations.derived(plan.key(results[0], width[results[0]]), lo, hi)
        elif passes_through(node) and source is not None and source in origin:
            bits = plan.at_use(source, (node, 0))
            for value in results:
                width[value], origin[value] = bits, origin[source]
            filler = _filler(node)
            if filler:
                plan.relations.derived(plan.key(source, bits), filler, filler)
        else:
            roots += [v for v in results if not is_fused(v)]
            clamped = limited(node)
            if clamped is not None and origin[clamped] is clamped:
                plan.relations.shared(plan.key(results[0], NARROW), plan.key(clamped, NARROW))
    plan.computed.update(plan.key(v, width[v]) for v in graph.outputs if v in origin)
    return plan


def _filler(node: Node) -> float:
    """The value a Pad writes, where it is one that a grid should hold (0 always is; infinities mean "the least")."""
    if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
        return 0.0
    value = node.optional(2)
    if value is None or value.data is None or value.data.size == 0:
        return 0.0
    filler = float(value.data.reshape(-1)[0])
    return filler if math.isfinite(filler) and abs(filler) < 1e30 else 0.0


def observed(graph: Graph) -> list[str]:
    """Names of the tensors whose statistics any placement, or bias correction, may ask for."""
    plan = place(graph, Widths())
    names = {v.name: None for v in plan.roots}
    for node in graph.nodes:
        if op_of(node.op).linear:
            names.update({v.name: None for v in node.inputs if v is not None and is_activation(v)})
        if node.op == "Concat" and is_activation(node.output):
            names[node.output.name] = None
    return list(names)


def activation_dtype(bits: int, signed: bool) -> DType:
    """The dtype of a narrow activation grid (wide ones are int16)."""
    if bits > NARROW:
        return DType.INT16
    return DType(f"{'int' if signed else 'uint'}{bits}")
