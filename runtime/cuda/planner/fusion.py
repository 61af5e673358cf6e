"""Which nodes share one launch: a linear operator with the requantization, addition and table that follow it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from qir.graph import Graph, Node, Value
from qir.ops import op_of

SUMS = ("qir.SumPool", "qir.ReduceSum")
"""Whose kernels rescale by one pair, and do nothing else."""


@dataclass
class Group:
    """Nodes carried out by one launch; `output` is what the last one yields.

    second: a qir.Requantize of `output` to 8 bits that the launch carries out, too, while others read `output` itself:
    what a convolution behind a wider residual stream takes.
    """

    nodes: list[Node]
    requantize: Node | None = None
    add: Node | None = None
    table: Node | None = None
    second: Node | None = None
    inputs: list[Value] = field(default_factory=list)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> Value:
        return self.nodes[-1].output

    @property
    def residual(self) -> Value | None:
        """The other operand of the fused addition."""
        if self.add is None or self.requantize is None:
            return None
        a, b = self.add.input(0), self.add.input(1)
        return b if a is self.requantize.output else a


def fuse(graph: Graph, kept: Collection[Value]) -> list[Group]:
    """Groups in an order in which every group's inputs come before it. Values in `kept` are never swallowed."""
    groups: list[Group] = []
    rank = {n: i for i, n in enumerate(graph.nodes)}
    taken: set[Node] = set()
    for node in graph.nodes:
        if node in taken:
            continue
        group = Group([node])
        if op_of(node.op).linear and node.op != "qir.MatMulActivations":  # that one's kernel has no epilogue
            _extend(group, kept, taken)
            group.second = _second(group)
        elif node.op in SUMS:
            _extend_sums(group, kept)
        taken.update(group.nodes)
        if group.second is not None:
            taken.add(group.second)
        group.inputs = _inputs(group)
        groups.append(group)
    # a fused addition waits for its other operand: order by the last node of each group
    return sorted(groups, key=lambda g: rank[g.nodes[-1]])


def _inputs(group: Group) -> list[Value]:
    inside = {v for n in group.nodes for v in n.outputs}
    seen = dict.fromkeys(v for n in group.nodes for v in n.inputs if v is not None and v not in inside)
    return list(seen)


def _only_use(value: Value, kept: Collection[Value]) -> Node | None:
    uses = value.uses()
    return uses[0][0] if len(uses) == 1 and value not in kept and not value.is_output else None


def _extend(group: Group, kept: Collection[Value], taken: set[Node]) -> None:
    node = _only_use(group.output, kept)
    if node is None or node.op != "qir.Requantize" or not _per_channel(node, group.output.type.rank, group.head.op):
        return
    group.nodes.append(node)
    group.requantize = node
    node = _only_use(group.output, kept)
    if node is not None and node.op == "qir.Add" and node not in taken:
        a, b = node.input(0), node.input(1)
        other = b if a is group.output else a
        if a is not b and other.shape == group.output.shape and other.data is None:
            group.nodes.append(node)
            group.add = node
            node = _only_use(group.output, kept)
    if node is None or node.op != "qir.Table" or node.attrs["axis"] is not None:
        return
    if group.output.dtype.bits == 8 and node.output.dtype.bits <= 16:
        group.nodes.append(node)
        group.table = node


def _extend_sums(group: Group, kept: Collection[Value]) -> None:
    """Average pooling: sums, requantized by one pair."""
    node = _only_use(group.output, kept)
    if node is not None and node.op == "qir.Requantize" and _one_pair(node):
        group.nodes.append(node)
        group.requantize = node


def _one_pair(node: Node) -> bool:
    """Whether a qir.Requantize has one constant multiplier and shift."""
    return all(v is not None and v.data is not None and v.data.size == 1 for v in node.inputs[1:3])


def _second(group: Group) -> Node | None:
    """The first requantization of a group's result to 8 bits, by one pair, unless it is the result's only use.

    None behind a table without signs: the epilogue looks entries up as they are stored, not as numbers to go on with.
    """
    if group.requantize is None or group.output.dtype.bits not in (8, 16):
        return None
    if group.table is not None and not group.output.dtype.is_signed:
        return None
    users = [node for node, _ in group.output.uses()]
    for node in users if len(users) > 1 or group.output.is_output else ():
        if node.op != "qir.Requantize" or node.input(0) is not group.output:
            continue
        if _one_pair(node) and node.output.dtype.numpy.itemsize == 1:
            return node
    return None


def _per_channel(node: Node, rank: int, head: str) -> bool:
    """Whether the multiplier is a scalar or a vector along the channel axis (1 of a Conv, the last of a MatMul)."""
    multiplier, shift = node.input(1), node.input(2)
    if multiplier.data is None or shift.data is None or node.attrs["x_zero_point"]:
        return False
    axis = 1 if head == "qir.Conv" else rank - 1
    for v in (multiplier, shift):
        padded = (1,) * (rank - len(v.shape)) + tuple(v.shape)
        if any(d != 1 for i, d in enumerate(padded) if i != axis):
            return False
    return True
