"""Helpers of the operator tests: one-node graphs, run as float, as QDQ and as integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.lowering import Lowering, Plain, Quantized, Real
from qir.ops import op_of
from qir.runtime import Session
from qir.types import Array


def build(op: str, inputs: Sequence[Any], attrs: Mapping[str, Any], *, feeds: int = 1, outputs: int = 1) -> Graph:
    """A graph of one node whose first `feeds` inputs are graph inputs x0, x1 ... and the others constants."""
    g = Graph(op)
    values: list[Any] = []
    for i, array in enumerate(inputs):
        if array is None:
            values.append(None)
        elif i < feeds:
            shape = tuple(array.shape)
            values.append(g.add_input(f"x{i}", TensorType(DType.of(array), shape)))
        else:
            values.append(g.add_constant(f"c{i}", np.asarray(array)))
    g.set_outputs(g.add_node(op, values, attrs, outputs=[f"y{i}" for i in range(outputs)]).outputs)
    return g


@pytest.fixture(scope="session")
def one_node() -> Callable[..., Graph]:
    return build


@pytest.fixture(scope="session")
def agree_with_onnxruntime() -> Callable[..., None]:
    """Asserts that `reference` and `infer` say what onnxruntime computes for one node."""

    def check(
        op: str, inputs: Sequence[Any], attrs: Mapping[str, Any], *, feeds: int = 1, outputs: int = 1, tol: float = 1e-5
    ) -> None:
        g = build(op, inputs, attrs, feeds=feeds, outputs=outputs)
        fed = {f"x{i}": inputs[i] for i in range(feeds)}
        want = Session(g, "onnxruntime", threads=1).run(fed)
        got = Session(g, "reference").run(fed)
        for value in g.outputs:
            a, b = got[value.name], want[value.name]
            assert a.shape == b.shape == value.shape, f"{value}: {a.shape} {b.shape}"
            assert a.dtype == b.dtype == value.dtype.numpy
            if a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
            else:
                np.testing.assert_array_equal(a, b)

    return check


def qdq(g: Graph, value: Any, q: QuantParams) -> Any:
    """value -> QuantizeLinear -> DequantizeLinear."""
    scale = g.add_constant("scale", np.asarray(q.scale[0], np.float32))
    zero = g.add_constant("zero", np.asarray(q.zero_point[0], q.dtype.numpy), q.dtype)
    quantized = g.add_node("QuantizeLinear", [value, scale, zero], outputs=[f"{value.name}.quantized"]).output
    return g.add_node("DequantizeLinear", [quantized, scale, zero], outputs=[f"{value.name}.dequantized"]).output


def lower(g: Graph) -> Graph:
    """The integer graph of a QDQ graph, border included: what the lowering pass does, without its extras."""
    out = Graph(g.name, Stage.INTEGER)
    low = Lowering(g, out)
    for value in g.inputs:
        low.set(value, Real(out.add_input(value.name, value.type)))
    for node in g.nodes:
        low.node = node
        op_of(node.op).to_integer(low, node)
    ends: list[Any] = []
    for value in g.outputs:
        form = low.form(value)
        assert isinstance(form, (Quantized, Plain)), f"{value.name}: {form}"
        ends.append(form.value)
    out.set_outputs(ends)
    out.prune()
    return out


@pytest.fixture(scope="session")
def integer_case() -> Callable[..., Graph]:
    """Lowers QDQ -> op -> QDQ and checks it.

    Reference and onnxruntime (opset 21) give the same bits on every tensor; outputs are within `steps` steps of the
    QDQ graph's.  `batch` makes the first axis of the inputs symbolic.  Returns the integer graph.
    """

    def check(
        op: str, inputs: Sequence[Any], attrs: Mapping[str, Any], grids: Sequence[QuantParams],
        out: Sequence[QuantParams | None], *, batch: bool = False, steps: int = 1,
    ) -> Graph:  # fmt: skip
        g = Graph(op, Stage.QDQ)
        values: list[Any] = []
        for i, array in enumerate(inputs):
            if i < len(grids):
                shape = tuple(array.shape)
                x = g.add_input(f"x{i}", TensorType(DType.FLOAT32, ("N", *shape[1:]) if batch else shape))
                values.append(qdq(g, x, grids[i]))
            else:
                values.append(None if array is None else g.add_constant(f"c{i}", np.asarray(array)))
        node = g.add_node(op, values, attrs, outputs=[f"y{i}" for i in range(len(out))])
        g.set_outputs([v if q is None else qdq(g, v, q) for v, q in zip(node.outputs, out, strict=True)])
        integer = lower(g)
        fed = {f"x{i}": np.asarray(inputs[i], np.float32) for i in range(len(grids))}
        names = [v.name for v in integer.values if v.data is None and v.producer is not None]
        a = Session(integer, "reference").run(fed, outputs=names)
        b = Session(integer, "onnxruntime", threads=1).run(fed, outputs=names)
        for name in names:
            assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        real: dict[str, Array] = Session(g, "reference").run(fed)
        for value, want, q in zip(integer.outputs, g.outputs, out, strict=True):
            got = a[value.name]
            if q is None:
                np.testing.assert_array_equal(got, real[want.name])
            else:
                difference = np.abs(q.dequantize(got) - real[want.name]).max(initial=0) / q.scale[0]
                assert difference <= steps + 1e-3, f"{difference} steps off"
        assert not any(v.dtype.is_float and v.producer is not None for v in integer.values)
        return integer

    return check


@pytest.fixture(scope="session")
def quantize_dequantize() -> Callable[..., Any]:
    """(graph, value, QuantParams) -> the value behind a QuantizeLinear and a DequantizeLinear."""
    return qdq


@pytest.fixture(scope="session")
def check_lowering() -> Callable[..., Graph]:
    """Lowers a QDQ graph; reference == onnxruntime on every tensor; outputs within `steps` of the QDQ graph's."""

    def check(g: Graph, feeds: Mapping[str, Array], grids: Sequence[QuantParams], steps: float = 1) -> Graph:
        integer = lower(g)
        names = [v.name for v in integer.values if v.data is None and v.producer is not None]
        a = Session(integer, "reference").run(feeds, outputs=names)
        b = Session(integer, "onnxruntime", threads=1).run(feeds, outputs=names)
        for name in names:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        real = Session(g, "reference").run(feeds)
        for value, want, q in zip(integer.outputs, g.outputs, grids, strict=True):
            difference = np.abs(q.dequantize(a[value.name]) - real[want.name]).max(initial=0) / q.scale[0]
            assert difference <= steps + 1e-3, f"{value.name}: {difference} steps off"
        return integer

    return check
