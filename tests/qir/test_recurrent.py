"""LSTM, GRU and RNN: written out as onnxruntime computes them, and on integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper as oh

import qir
from qir.errors import UnsupportedError
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def model(op: str, *, states: bool = False, batch: Any = "N", steps: Any = 6, **attrs: Any) -> onnx.ModelProto:
    """x (steps, batch, 5) -> y, y_h (and y_c)."""
    rng = np.random.default_rng(3)
    size, count = 7, 2 if attrs.get("direction") == "bidirectional" else 1
    gates = GATES[op]
    stored = {
        "w": rng.normal(size=(count, gates * size, 5)) * 0.5, "r": rng.normal(size=(count, gates * size, size)) * 0.4,
        "b": rng.normal(size=(count, 2 * gates * size)) * 0.2,
    }  # fmt: skip
    kind, outputs = onnx.TensorProto.FLOAT, ["y", "y_h"] + ["y_c"] * (op == "LSTM")
    inputs = [oh.make_tensor_value_info("x", kind, [steps, batch, 5])]
    names = ["x", "w", "r", "b"]
    if states:
        names += ["", "h0"] + ["c0"] * (op == "LSTM")
        inputs += [oh.make_tensor_value_info(n, kind, [count, batch, size]) for n in names[5:]]
    node = oh.make_node(op, names, outputs, hidden_size=size, name="cell", **attrs)
    graph = oh.make_graph(
        [node], "g", inputs, [oh.make_tensor_value_info(o, kind, None) for o in outputs],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in stored.items()],
    )  # fmt: skip
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}), ("LSTM", {"direction": "reverse"}), ("LSTM", {"direction": "bidirectional"}),
    ("LSTM", {"states": True}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "states": True, "direction": "bidirectional"}), ("GRU", {"states": True}),
    ("RNN", {}), ("RNN", {"states": True, "direction": "reverse"}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "options"), CASES, ids=str)
def test_recurrent_networks(op: str, options: dict[str, Any]) -> None:
    proto = model(op, batch=16, **options)
    rng = np.random.default_rng(5)
    feeds = {
        i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in proto.graph.input
    }
    want = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    graph = qir.load(proto)
    got = Session(graph, "reference").run(feeds)
    for value, w in zip(graph.outputs, want, strict=True):
        np.testing.assert_allclose(got[value.name], np.asarray(w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", GATES)
def test_recurrent_networks_on_integers(op: str) -> None:
    graph = qir.load(model(op, batch=16))
    calib, test = ({"x": np.random.default_rng(s).normal(size=(6, 16, 5)).astype(np.float32)} for s in (0, 1))
    integer, _ = qir.quantize(graph, iter([calib]))
    want, got = (Session(g, "reference").run(test)["y"].astype(np.float64) for g in (graph, integer))
    decibels = 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())
    assert decibels > 27, decibels
    assert exactness(integer, test, step=6).exact


def test_an_open_length_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"LSTM node 'cell': a sequence of .* steps.*must be known"):
        qir.load(model("LSTM", batch=2, steps="T"))


def test_a_cell_that_has_grown() -> None:
    """c' = f c + i g with c of hundreds: tanh(c') needs its units, the products 16 bits."""
    rng = np.random.default_rng(4)
    kind = onnx.TensorProto.FLOAT
    gates = ("i", "f", "o", "g")
    nodes = [oh.make_node("Gemm", ["x", f"w{k}"], [f"a{k}"]) for k in gates]
    nodes += [oh.make_node("Tanh" if k == "g" else "Sigmoid", [f"a{k}"], [k]) for k in gates]
    nodes += [
        oh.make_node("Mul", ["f", "c0"], ["kept"]), oh.make_node("Mul", ["i", "g"], ["new"]),
        oh.make_node("Add", ["kept", "new"], ["c1"]), oh.make_node("Tanh", ["c1"], ["t"]),
        oh.make_node("Mul", ["o", "t"], ["h1"]),
    ]  # fmt: skip
    graph = oh.make_graph(
        nodes, "g", [oh.make_tensor_value_info("x", kind, ["N", 9]), oh.make_tensor_value_info("c0", kind, ["N", 8])],
        [oh.make_tensor_value_info(o, kind, None) for o in ("h1", "c1")],
        [onnx.numpy_helper.from_array(rng.normal(size=(9, 8)).astype(np.float32) * 0.5, f"w{k}") for k in gates],
    )  # fmt: skip
    net = qir.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)]))
    x, c = rng.normal(size=(64, 9)), rng.normal(size=(64, 8)) * 10.0 ** rng.uniform(-1, 2.4, size=(64, 8))
    feeds = {"x": x.astype(np.float32), "c0": c.astype(np.float32)}
    integer, _ = qir.quantize(net, feeds)
    want, got = (Session(g, "reference").run(feeds)["h1"].astype(np.float64) for g in (net, integer))
    assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) > 27
    assert exactness(integer, {k: v[:4] for k, v in feeds.items()}).exact
