"""The parser of a graph's canonical text (see `qir.text` for the form)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FOREIGN, ParseError, QirError, TypeInferenceError, said
from .graph import Graph, Stage, Value
from .sizes import Symbol, canonical, symbols_of
from .text import WORD
from .types import Array, Dim, DType, QuantParams, TensorType


def parse_graph(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph that a text describes; types are taken as written (`verify` compares them with `infer`).

    Raises ParseError with the line's number and what was expected there.
    """
    constants = constants or {}
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ParseError("is empty", where="graph text")
    number, first = lines[0]
    head = _Cursor(first, number)
    head.expect("graph")
    name = head.json(str)
    head.expect("stage=")
    stage = head.word()
    if stage not in Stage.__members__:
        head.fail(f"unknown stage {stage!r}")
    head.expect("{")
    head.end()
    graph = Graph(name, Stage[stage])
    closed = False
    for number, line in lines[1:]:
        cursor = _Cursor(line, number)
        if closed:
            cursor.fail("nothing may follow the closing brace")
        try:
            closed = _line(graph, cursor, constants)
        except ParseError:
            raise
        except QirError as error:
            raise ParseError(str(error), where=f"line {number}") from error
        except FOREIGN as error:
            raise ParseError(f"is malformed: {said(error)}", where=f"line {number}") from error
    if not closed:
        raise ParseError("the closing brace is missing", where=f"line {lines[-1][0]}")
    return graph


def _line(graph: Graph, cursor: _Cursor, constants: Mapping[str, Array]) -> bool:
    """One statement; True for the closing brace."""
    if cursor.take("}"):
        cursor.end()
        return True
    if cursor.take("metadata "):
        key = cursor.json(str)
        cursor.expect("=")
        graph.metadata[key] = cursor.json(str)
    elif cursor.take("size "):
        symbol = cursor.word()
        name = cursor.json(str) if cursor.take('"', keep=True) else ""
        step = int(cursor.json(int)) if cursor.take("step ") else 1
        if step < 1 or symbols_of(symbol) != frozenset((symbol,)):
            cursor.fail(f"{symbol!r} is no size of step {step}")
        graph.symbols[symbol] = Symbol(name, step, cursor.take("long"))
    elif cursor.take("input "):
        name = cursor.ref()
        graph.add_input(name, cursor.type(name, constants))
    elif cursor.take("const "):
        _parse_constant(graph, cursor, constants)
    elif cursor.take("return"):
        refs: list[str] = []
        while not cursor.done:
            refs.append(cursor.ref())
            if not cursor.take(","):
                break
        graph.set_outputs([graph.value(r) for r in refs])
    else:
        _parse_node(graph, cursor, constants)
    cursor.end()
    return False


def _parse_constant(graph: Graph, cursor: _Cursor, constants: Mapping[str, Array]) -> None:
    name = cursor.ref()
    kind = cursor.type(name, constants)
    cursor.expect("=")
    if cursor.take("..."):
        if name not in constants:
            cursor.fail(f"constant {name!r} is elided and not given")
        data = np.asarray(constants[name])
    else:
        data = np.asarray(cursor.json(object), dtype=kind.dtype.numpy).reshape([int(d) for d in kind.shape])
    if tuple(data.shape) != kind.shape:
        cursor.fail(f"constant {name!r} has shape {list(data.shape)}, not {list(kind.shape)}")
    if name in graph:
        cursor.fail(f"value {name!r} exists already")
    graph.add_constant(name, data, kind.dtype, kind.quant)


def _parse_node(graph: Graph, cursor: _Cursor, constants: Mapping[str, Array]) -> None:
    names: list[str] = []
    types: list[TensorType] = []
    while True:
        names.append(cursor.ref())
        types.append(cursor.type(names[-1], constants))
        if not cursor.take(","):
            break
    cursor.expect("=")
    op = cursor.word()
    cursor.expect("(")
    inputs: list[Value | None] = []
    while not cursor.take(")"):
        if inputs:
            cursor.expect(",")
        inputs.append(None if cursor.take("-") else graph.value(cursor.ref()))
    attrs: dict[str, Any] = {}
    if cursor.take("{"):
        while not cursor.take("}"):
            if attrs:
                cursor.expect(",")
            key = cursor.word()
            cursor.expect("=")
            attrs[key] = _parse_attr(cursor.json(object))
    node_name = names[0] if cursor.done else cursor.json(str)
    for name in names:
        if name in graph:
            cursor.fail(f"value {name!r} exists already")
    graph.add_node(op, inputs, attrs, outputs=names, name=node_name, types=types)


def _parse_attr(value: Any) -> Any:
    if isinstance(value, dict):
        return np.asarray(value["array"], dtype=value["dtype"]).reshape(value["shape"])
    return value


@dataclass
class _Cursor:
    """A line being read."""

    text: str
    number: int
    at: int = 0

    def fail(self, message: str) -> None:
        raise ParseError(f"{message} at column {self.at + 1}", where=f"line {self.number}")

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    @property
    def done(self) -> bool:
        self._skip()
        return self.at >= len(self.text)

    def take(self, token: str, keep: bool = False) -> bool:
        """Whether the token comes next; it is passed over, unless it is to be kept."""
        self._skip()
        if self.text.startswith(token, self.at):
            self.at += 0 if keep else len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            self.fail(f"{token!r} expected")

    def end(self) -> None:
        if not self.done:
            self.fail("end of line expected")

    def word(self) -> str:
        self._skip()
        match = re.compile(r"[A-Za-z0-9_.]+").match(self.text, self.at)
        if match is None:
            self.fail("a word expected")
            return ""
        self.at = match.end()
        return match.group()

    def json(self, wanted: type) -> Any:
        self._skip()
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            self.fail("a value expected")
            return None
        if not isinstance(value, wanted):
            self.fail(f"a {wanted.__name__} expected")
        return value

    def ref(self) -> str:
        self.expect("%")
        if self.text.startswith('"', self.at):
            return self.json(str)
        match = WORD.match(self.text, self.at)
        if match is None:
            self.fail("a name expected")
            return ""
        self.at = match.end()
        return match.group()

    def type(self, name: str, constants: Mapping[str, Array]) -> TensorType:
        self.expect(":")
        word = self.word()
        if word not in DType._value2member_map_:
            self.fail(f"unknown dtype {word!r}")
        self.expect("[")
        dims: list[Dim] = []
        while not self.take("]"):
            if dims:
                self.expect(",")
            dims.append(self._dim())
        return TensorType(DType(word), tuple(dims), self._quant(DType(word), name, constants))

    def _dim(self) -> Dim:
        self._skip()
        match = re.compile(r"[^\],]+").match(self.text, self.at)
        if match is None:
            self.fail("a size expected")
            return 0
        try:
            dim = canonical(match.group())
        except TypeInferenceError as error:
            self.fail(f"a size expected: {error}")
            return 0
        self.at = match.end()
        return dim

    def _quant(self, dtype: DType, name: str, constants: Mapping[str, Array]) -> QuantParams | None:
        if not self.take("@"):
            return None
        axis = None
        if self.take("axis="):
            axis = int(self.json(int))
        self.expect("scale=")
        scales = self._numbers(f"{name}@scale", constants)
        self.expect("zp=")
        zeros = [int(z) for z in self._numbers(f"{name}@zp", constants)]
        if len(zeros) == 1:
            zeros *= len(scales)
        return QuantParams(tuple(float(s) for s in scales), tuple(zeros), dtype, axis)

    def _numbers(self, key: str, constants: Mapping[str, Array]) -> Sequence[float]:
        if self.take("..."):
            if key not in constants:
                self.fail(f"{key} is elided and not given")
            return list(constants[key].tolist())
        value = self.json(object)
        values: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            self.fail("numbers expected")
        return values
