"""What a graph will take, known from its types, against a limit: refused by name before anything is allocated.

The limit is QIR_MEMORY_LIMIT or `--memory-limit` ("4GB", "500 MB"), by default 4 GB for what a file asks for.  How
many samples a run takes at once is the user's own choice: it is held against the machine's memory where nobody set a
limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from ..errors import DataError, MemoryLimitError
from ..graph import Graph, Node, Value
from ..sizes import Sizes
from .base import elements, op_of

DEFAULT = 4 << 30
VARIABLE = "QIR_MEMORY_LIMIT"
HINT = f"a larger limit: --memory-limit 16GB, or {VARIABLE}=16GB in the environment"

MOST_COMPUTED = 1 << 26
"""Elements of a tensor that constants alone determine: no file of a real network computes larger ones."""

MOST_SPREAD, SPREAD = 1 << 24, 4096
"""Elements of one sample's tensor that an operator may make of a tensor so many times smaller."""

LONGEST = 1 << 40
"""Of one axis."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def bytes_of(text: str) -> int:
    """ "4GB", "1.5 g", "500000000".  Raises DataError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not found or float(found[1]) == 0:
        raise DataError(f"{text!r} is no amount of memory", where=VARIABLE, hint="4GB, 500MB, or bytes")
    return int(float(found[1]) * _UNITS[found[2]])


@contextmanager
def limited(text: str | None) -> Generator[None]:
    """Inside, and in processes started there, the limit is another.  Raises DataError where it is no amount."""
    if text is None:
        yield
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(bytes_of(text))
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def given_limit() -> int | None:
    """The limit that the environment sets.  Raises DataError where it is no amount."""
    text = os.environ.get(VARIABLE, "")
    return bytes_of(text) if text else None


def limit() -> int:
    """Bytes that a file may ask for."""
    return given_limit() or DEFAULT


def run_limit() -> int:
    """Bytes that a run may take: the limit where one is set, else the machine's memory."""
    return given_limit() or max(DEFAULT, machine())


def machine() -> int:
    """Bytes of memory that this machine has; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def shown(size: float) -> str:
    """1536 -> "1.5 KB"."""
    size = float(min(size, 10**30))  # sizes of hostile files are products of any numbers
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TB"


def size_of(value: Value, at: int | Sizes = 1) -> int:
    """Bytes of a value at a batch size, or at given sizes of all symbols."""
    return elements(value, at) * value.dtype.numpy.itemsize


def demand(size: int, what: str, where: object, most: int | None = None) -> None:
    """Raises MemoryLimitError where `what` needs more than the limit (default: `limit()`)."""
    allowed = limit() if most is None else most
    if size > allowed:
        message = f"{what} needs {shown(size)}, the limit is {shown(allowed)}"
        raise MemoryLimitError(message, where=str(where), hint=HINT)


def check_graph(graph: Graph) -> None:
    """A graph as a file brought it.  Raises MemoryLimitError: one sample needs more than the limit, or one node makes
    vast tensors of small ones."""
    for value in graph.values:  # beside a size of 0, another may be any number: no kernel can count it
        if any(isinstance(d, int) and d > LONGEST for d in value.shape):
            where = value.producer or f"value {value.name!r}"
            raise MemoryLimitError(f"has a size beyond 2^40 in {list(value.shape)}", where=str(where))
    for node in graph.nodes:
        check_spread(node)
    size, node = peak(graph, 1)
    if node is not None:
        demand(size, "running one sample", node)


def check_spread(node: Node) -> None:
    """Raises MemoryLimitError where a node makes one of its inputs thousands of times larger, and it is large then."""
    sizes = op_of(node.op).shape_inputs  # a mask is made of its shape
    given = max((elements(v) for i, v in enumerate(node.inputs) if v is not None and i not in sizes), default=0)
    for value in node.outputs:
        made = elements(value)
        if given and made > MOST_SPREAD and made > SPREAD * given:
            raise MemoryLimitError(f"makes {made:,} elements of {given:,} for one sample", where=str(node))


def peak(graph: Graph, at: int | Sizes, kept: Sequence[Value] = ()) -> tuple[int, Node | None]:
    """(bytes, node): how much is alive at once at most, and which node makes the largest part; constants do not count.

    kept: values that are wanted besides the graph's outputs.
    """
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.data is None:
                last[value] = node
    for value in (*graph.outputs, *kept):
        last.pop(value, None)
    alive = sum(size_of(v, at) for v in graph.inputs)
    most, largest, maker = 0, -1, None
    for node in graph.nodes:
        made = sum(size_of(v, at) for v in node.outputs if v.data is None)
        if made > largest:
            largest, maker = made, node
        alive += made
        most = max(most, alive)
        for value in dict.fromkeys((*node.inputs, *node.outputs)):
            if value is not None and last.get(value) is node:
                alive -= size_of(value, at)
    return most, maker
