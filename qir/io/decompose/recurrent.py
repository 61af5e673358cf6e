"""LSTM, GRU and RNN of known length: written out step by step; what the input gives, for all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...types import Array
from ..adapters import Raw, Scope
from .steps import Decomposition, Steps, Writer

LONGEST = 512
"""Steps that are written out at most."""

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass
class Direction:
    """One direction's constants, transposed for products from the right, and the state while steps are written.

    w: (inputs, gates H).  r: (H, gates H).  wb, rb: (gates H,).  h, c: None stands for zeros.
    """

    w: Array
    r: Array
    wb: Array
    rb: Array
    h: str | None = None
    c: str | None = None
    rows: dict[int, str] = field(default_factory=dict[int, str])


def recurrent(scope: Scope, raw: Raw) -> Steps:
    """x (steps, batch, inputs) -> y (steps, directions, batch, H), y_h, y_c (directions, batch, H).

    Raises UnsupportedError: an open or too long sequence, weights that are no constants, peepholes, other activations
    than the defaults, clipping, lengths of each sequence, batch first.
    """
    w = Writer(scope, raw)
    known = ("hidden_size", "direction", "activations", "linear_before_reset")
    w.only(*known)
    x, steps = w.need(0), w.shape(raw.inputs[0])[0]
    if not isinstance(steps, int) or not 1 <= steps <= LONGEST:
        raise w.refuse(f"a sequence of {steps} steps", f"its length must be known, {LONGEST} at most (--input-shape)")
    directions = _directions(w)
    if raw.input(4):
        lengths = scope.data(raw.input(4))
        if lengths is None or (lengths != steps).any():
            raise w.refuse("sequences of different lengths are not supported")
    for index, name in ((5, "h"), (6, "c")):
        if raw.input(index) and not (index == 6 and raw.op != "LSTM"):
            for i, one in enumerate(directions):
                yield w("Gather", raw.input(index), w.ints(i), axis=0)
                setattr(one, name, w.last)
    backward = _text(w.number("direction", "forward"))
    for i, one in enumerate(directions):
        order = range(steps - 1, -1, -1) if backward == "reverse" or i == 1 else range(steps)
        yield w("MatMul", x, w.constant(one.w))
        yield w("Add", w.last, w.constant(one.wb if _keeps_apart(w) else one.wb + one.rb))
        given = w.last
        for t in order:
            yield w("Gather", given, w.ints(t), axis=0)
            yield from STEP[raw.op](w, one, w.last)
            one.rows[t] = one.h or ""
    yield from _results(w, directions, steps)


def _directions(w: Writer) -> list[Direction]:
    raw, scope = w.raw, w.scope
    gates = GATES[raw.op]
    given = [scope.data(raw.input(i)) for i in (1, 2, 3)]
    if given[0] is None or given[1] is None or (raw.input(3) and given[2] is None):
        raise w.refuse("weights that are no constants")
    if raw.input(7):
        raise w.refuse("peepholes are not supported")
    weights, inner = given[0].astype(np.float32), given[1].astype(np.float32)
    count = len(weights)
    names = [_text(a) for a in w.number("activations", [])]
    if names and names != [*DEFAULTS[raw.op]] * count:
        raise w.refuse(f"activations {names} are not supported", f"the defaults are: {', '.join(DEFAULTS[raw.op])}")
    size = inner.shape[-1]
    if inner.shape != (count, gates * size, size) or weights.shape[1] != gates * size:
        raise w.refuse(f"weights of shapes {list(weights.shape)} and {list(inner.shape)} do not fit")
    bias = np.zeros((count, 2 * gates * size), np.float32) if given[2] is None else given[2].astype(np.float32)
    made: list[Direction] = []
    for k in range(count):
        wb, rb = np.split(bias[k], 2)
        made.append(Direction(np.ascontiguousarray(weights[k].T), np.ascontiguousarray(inner[k].T), wb, rb))
    return made


def _keeps_apart(w: Writer) -> bool:
    """Whether the recurrent bias stays inside a product with a gate (GRU with linear_before_reset)."""
    return w.raw.op == "GRU" and bool(w.number("linear_before_reset", 0))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _split(w: Writer, name: str, sizes: Sequence[int]) -> tuple[Raw, list[str]]:
    made = w.many("Split", len(sizes), name, w.ints(list(sizes)), axis=-1)
    return made, [str(n) for n in made.outputs]


def _lstm(w: Writer, one: Direction, given: str) -> Steps:
    """i, o, f = sigmoid, g = tanh of x W + h R + b;  c' = f c + i g;  h' = o tanh(c')."""
    size = one.r.shape[0]
    if one.h is not None:
        yield w("MatMul", one.h, w.constant(one.r))
        yield w("Add", given, w.last)
        given = w.last
    split, gates = _split(w, given, [size] * 4)
    yield split
    for k, kind in enumerate(("Sigmoid", "Sigmoid", "Sigmoid", "Tanh")):
        if k != 2 or one.c is not None:
            yield w(kind, gates[k])
            gates[k] = w.last
    yield w("Mul", gates[0], gates[3])
    added = w.last
    if one.c is not None:
        yield w("Mul", gates[2], one.c)
        yield w("Add", w.last, added)
    one.c = w.last
    yield w("Tanh", one.c)
    yield w("Mul", gates[1], w.last)
    one.h = w.last


def _gru(w: Writer, one: Direction, given: str) -> Steps:
    """z, r = sigmoid;  n = tanh(x W + (r h) R + b), or tanh(x W + b + r (h R + b'));  h' = n + z (h - n)."""
    size, apart = one.r.shape[0], _keeps_apart(w)
    gates, new = one.r[:, : 2 * size], np.ascontiguousarray(one.r[:, 2 * size :])
    split, parts = _split(w, given, [2 * size, size])
    yield split
    both, candidate = parts
    if one.h is not None:
        yield w("MatMul", one.h, w.constant(np.ascontiguousarray(gates)))
        yield w("Add", both, w.last)
        both = w.last
    if apart:
        yield w("Add", both, w.constant(one.rb[: 2 * size]))
        both = w.last
    yield w("Sigmoid", both)
    split, (z, r) = _split(w, w.last, [size, size])
    yield split
    if apart:
        offset = w.constant(one.rb[2 * size :])
        if one.h is not None:
            yield w("MatMul", one.h, w.constant(new))
            yield w("Add", w.last, offset)
            offset = w.last
        yield w("Mul", r, offset)
        yield w("Add", candidate, w.last)
        candidate = w.last
    elif one.h is not None:
        yield w("Mul", r, one.h)
        yield w("MatMul", w.last, w.constant(new))
        yield w("Add", candidate, w.last)
        candidate = w.last
    yield w("Tanh", candidate)
    n = w.last
    if one.h is None:
        yield w("Mul", z, n)
        yield w("Sub", n, w.last)
    else:
        yield w("Sub", one.h, n)
        yield w("Mul", z, w.last)
        yield w("Add", n, w.last)
    one.h = w.last


def _rnn(w: Writer, one: Direction, given: str) -> Steps:
    """h' = tanh(x W + h R + b)."""
    if one.h is not None:
        yield w("MatMul", one.h, w.constant(one.r))
        yield w("Add", given, w.last)
        given = w.last
    yield w("Tanh", given)
    one.h = w.last


def _results(w: Writer, directions: Sequence[Direction], steps: int) -> Steps:
    outputs = [*w.raw.outputs, None, None, None]
    if outputs[0]:
        rows: list[str] = []
        for t in range(steps):
            parts: list[str] = []
            for one in directions:
                yield w("Unsqueeze", one.rows[t], w.ints([0, 1]))
                parts.append(w.last)
            if len(parts) > 1:
                yield w("Concat", *parts, axis=1)
            rows.append(w.last)
        yield w("Concat", *rows, axis=0, output=outputs[0])
    for name, state in ((outputs[1], "h"), (outputs[2], "c")):
        if name:
            parts = []
            for one in directions:
                yield w("Unsqueeze", getattr(one, state), w.ints([0]))
                parts.append(w.last)
            yield w("Concat", *parts, axis=0, output=name)


STEP: dict[str, Callable[[Writer, Direction, str], Steps]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
STANDARD: dict[str, Decomposition] = dict.fromkeys(STEP, recurrent)
