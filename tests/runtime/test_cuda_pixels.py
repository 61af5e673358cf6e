"""Images quantized at the border: divisions beside ties."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from qir import DType
from qir.graph import Graph
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case
from qir.types import QuantParams, TensorType

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def same(graph: Graph, feeds: dict[str, Any]) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    want = Session(graph, "reference").run(feeds)
    got = Session(graph, "cuda", device=EmulatedDevice(0)).run(feeds)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT8])
@pytest.mark.parametrize("scale", [0.0078125, 0.0123456, 3.3e-17, 7.77e16, 0.99999994])
@pytest.mark.parametrize("size", [(7, 12), (5, 7)])
def test_pixels(dtype: DType, scale: float, size: tuple[int, int]) -> None:
    """Beside halves of the step the quotient's last bit decides."""
    graph = Case(0, 2).graph
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 3, *size)))
    zero = 3 if dtype == DType.INT8 else 117
    step = float(np.float32(scale))
    given = ("s", np.asarray(step, np.float32)), ("z", np.asarray(zero, dtype.numpy))
    operands = [graph.add_constant(name, data) for name, data in given]
    q = graph.add_node("QuantizeLinear", [x, *operands], quant=QuantParams.make(step, zero, dtype))
    graph.set_outputs([q.output])
    rng = np.random.default_rng(0)
    halves = (rng.integers(-300, 300, (2, 3, *size)) / 2).astype(np.float32) * np.float32(scale)
    ulps = np.frombuffer((halves.view(np.int32) + rng.integers(-2, 3, halves.shape)).astype(np.int32), np.float32)
    data = ulps.reshape(halves.shape).copy()
    data[0, 0, 0, :6] = [3e38, -3e38, 1e-40, -1e-40, 0.0, -0.0]
    same(graph, {"x": data})
