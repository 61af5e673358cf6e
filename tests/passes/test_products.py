"""Products of matrices as exporters may write them: quantized whole, close to the float graph, the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qir
from qir import Graph, TensorType, passes
from qir.runtime import Session
from qir.runtime.measure.compare import decibel
from qir.runtime.measure.exactness import exactness
from qir.types import DType

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "weights on the left": ("MatMul", [(3, 7), "x[7,6]"], {}),
    "weights on the left of a vector": ("MatMul", [(3, 7), "v[7]"], {}),
    "a stack of weights on the left": ("MatMul", [(2, 3, 7), "x[2,7,6]"], {}),
    "Gemm, weights on the left": ("Gemm", [(3, 7), "m[7,6]", (3, 1)], {}),
    "Gemm, weights on the left transposed": ("Gemm", [(7, 3), "m[6,7]", (6,)], {"transA": 1, "transB": 1}),
    "Gemm, an offset for each row": ("Gemm", ["m[4,6]", (6, 5), (4, 1)], {"beta": 0.5}),
    "Gemm, an offset for each element": ("Gemm", ["m[4,6]", (5, 6), (4, 5)], {"transB": 1, "alpha": 0.7}),
    "Gemm, an offset that is an activation": ("Gemm", ["x[6]", (6, 5), "x[5]"], {"beta": 1.5}),
}  # fmt: skip
"""name -> operator; inputs: a constant's shape, or x (batches of ...), v, m (as it is); attributes."""


def test_simplify_leaves_a_quantized_gemm_its_bias() -> None:
    text = """
graph "g" stage=QDQ {
  input %x: float32[N,2]
  const %s: float32[] = 0.5
  const %z: uint8[] = 0
  const %zw: int8[] = 0
  %x.q: uint8[N,2] = QuantizeLinear(%x, %s, %z)
  %x.dq: float32[N,2] = DequantizeLinear(%x.q, %s, %z)
  const %w: int8[2,1] = [[1], [2]]
  %w.dq: float32[2,1] = DequantizeLinear(%w, %s, %zw)
  const %b: int32[1] = [7]
  const %sb: float32[] = 0.25
  %b.dq: float32[1] = DequantizeLinear(%b, %sb)
  %h: float32[N,1] = Gemm(%x.dq, %w.dq, %b.dq)
  %y: float32[N,1] = Relu(%h)
  return %y
}
"""
    graph = Graph.parse(text)
    simple, _ = passes.Simplify().apply(graph)
    assert [n.op for n in simple.nodes] == [n.op for n in graph.nodes]


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
@pytest.mark.parametrize("case", CASES)
def test_a_product_is_quantized_whatever_its_sides_are(case: str, recipe: str) -> None:
    op, inputs, attrs = CASES[case]
    rng = np.random.default_rng(5)
    graph, values, shapes = Graph("g"), [], dict[str, tuple[int, ...]]()
    for i, given in enumerate(inputs):
        if isinstance(given, tuple):
            values.append(graph.add_constant(f"c{i}", rng.normal(size=given).astype(np.float32)))
            continue
        kind, sizes = given[0], tuple(int(d) for d in given[2:-1].split(","))
        batch = ("N",) if kind == "x" else ()
        values.append(graph.add_input(f"x{i}", TensorType(DType.FLOAT32, (*batch, *sizes))))
        shapes[f"x{i}"] = (*((4,) if batch else ()), *sizes)
    graph.set_outputs(graph.add_node(op, values, attrs, outputs=["y"]).outputs)
    samples = [{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(8)]
    integer, _ = qir.quantize(graph, samples, recipe=recipe)
    want, got = (Session(g, "reference").run(samples[0])["y"] for g in (graph, integer))
    assert decibel(float((want**2).sum()), float(((want - got) ** 2).sum())) > (30 if recipe == "w8a8" else 12)
    assert exactness(integer, samples[0], step=8).exact
