"""Layer, RMS, instance, group and L2 normalization: float meaning, integers, the proof  [docs/arithmetic.md 9a]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.errors import LoweringError, QirError
from qir.ops import op_of
from qir.ops.normalize import inverse_root_table, normalize_constants
from qir.verify import verify

INT16 = QuantParams.make(0.0004, 0, DType.INT16)


def signal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("axis", [-1, 1])
def test_float(axis: int, agree_with_onnxruntime: Any) -> None:
    x = signal(1, 2, 5, 7)
    tail = x.shape[axis:]
    gamma, beta = signal(2, *tail), signal(3, *tail)
    agree_with_onnxruntime("LayerNormalization", [x, gamma, beta], {"axis": axis, "epsilon": 1e-3}, tol=1e-4)
    agree_with_onnxruntime("LayerNormalization", [x, gamma], {"axis": axis}, tol=1e-4)
    agree_with_onnxruntime("RMSNormalization", [x, gamma], {"axis": axis}, tol=1e-4)
    agree_with_onnxruntime("LpNormalization", [x], {"axis": axis}, tol=1e-4)
    agree_with_onnxruntime("LpNormalization", [x], {"axis": axis, "p": 1}, tol=1e-4)
    agree_with_onnxruntime("InstanceNormalization", [x, signal(4, 5), signal(5, 5)], {}, tol=1e-4)
    wide = signal(6, 2, 6, 3, 4)
    group = [wide, signal(4, 6), signal(5, 6)]
    agree_with_onnxruntime("GroupNormalization", group, {"num_groups": 3}, tol=1e-4)
    agree_with_onnxruntime("ReduceL2", [x, np.asarray([1], np.int64)], {"keepdims": 0}, tol=1e-4)


@pytest.mark.parametrize(
    "grid", [INT16, QuantParams.make(0.08, 100, DType.UINT8), QuantParams.make(0.08, -9, DType.INT8)]
)
@pytest.mark.parametrize("out", [QuantParams.make(0.02, 20, DType.INT8), QuantParams.make(0.0003, 0, DType.INT16)])
def test_rows(grid: QuantParams, out: QuantParams, integer_case: Any) -> None:
    x = signal(7, 3, 4, 33)
    x[0, 1] = 0.5  # a constant row
    steps = 2
    g = integer_case("LayerNormalization", [x, signal(8, 33) / 3, signal(9, 33) / 9], {}, [grid], [out], batch=True,
                     steps=steps)  # fmt: skip
    assert [n.op for n in g.nodes] == ["QuantizeLinear", "qir.Normalize"]
    integer_case("RMSNormalization", [x, signal(8, 33) / 3], {"epsilon": 1e-6}, [grid], [out], steps=steps)
    integer_case("LpNormalization", [x], {}, [grid], [QuantParams.make(0.01, 0, DType.INT8)], steps=1)


def test_several_axes_channels_and_groups(integer_case: Any) -> None:
    out = QuantParams.make(0.03, 0, DType.INT8)
    x = signal(10, 2, 6, 3, 4)
    integer_case("LayerNormalization", [x, signal(11, 6, 3, 4) / 3], {"axis": 1}, [INT16], [out], batch=True)
    pair = [signal(12, 6) / 3, signal(13, 6) / 3]
    integer_case("InstanceNormalization", [x, *pair], {}, [INT16], [out], batch=True)
    g = integer_case("GroupNormalization", [x, *pair], {"num_groups": 2}, [INT16], [out], batch=True)
    assert [n.op for n in g.nodes] == ["QuantizeLinear", "Reshape", "qir.Normalize", "Reshape"]


@pytest.mark.parametrize("n", [1, 2, 3, 64, 384, 4096, 16384])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT8, DType.INT16])
def test_at_most_one_step_from_float(n: int, centre: bool, dtype: DType) -> None:
    """Outlier channels, nearly constant rows, one-hot rows, zeros."""
    seed = n + 2 * centre
    rng = np.random.default_rng(seed)
    x = rng.integers(dtype.lo, dtype.hi + 1, size=(12, n))
    x[0], x[1], x[2] = dtype.hi, 7, 0
    x[3] = rng.integers(0, 2, size=n)
    x[4] = 0
    x[4, 0] = dtype.hi
    x[5] //= 64
    x = x.astype(dtype.numpy)
    for kind, epsilon in ((DType.INT8, 1e-12), (DType.INT16, 1e-5)):
        zero = 0 if dtype.bits == 16 else int(rng.integers(dtype.lo, dtype.hi))
        grid = QuantParams.make(10.0 ** rng.uniform(-5, 0), zero, dtype)
        gamma, beta = rng.normal(size=n), rng.normal(size=n)
        real = (x.astype(np.float64) - zero) * grid.scale[0]
        real = real - real.mean(-1, keepdims=True) if centre else real
        want = real / np.sqrt((real * real).mean(-1, keepdims=True) + epsilon) * gamma + beta
        target = QuantParams.make(float(np.abs(want).max()) / kind.hi, 3, kind)
        c = normalize_constants(grid, n, centre, gamma, beta, epsilon, target, "here")
        attrs = {
            "centre": int(centre), "x_zero_point": zero, "extra": c.extra, "noise": c.noise, "shift": c.shift,
            "lo": kind.lo, "hi": kind.hi, "dtype": str(kind),
        }  # fmt: skip
        (got,) = op_of("qir.Normalize").reference(attrs, x, c.multiplier_i32, c.offset_i64, inverse_root_table())
        assert np.abs(got.astype(int) - target.quantize(want).astype(int)).max() <= 1, (seed, kind)


def test_refusals_name_the_size_the_width_and_epsilon() -> None:
    out = QuantParams.make(0.02, 0, DType.INT8)
    with pytest.raises(LoweringError, match="20000 elements of int16 with epsilon 1e-05"):
        normalize_constants(INT16, 20000, True, np.ones(1), np.zeros(1), 1e-5, out, "here")
    tiny = QuantParams.make(1e-12, 0, DType.INT16)
    with pytest.raises(LoweringError, match="do not fit 62 bits"):
        normalize_constants(tiny, 64, True, np.ones(1), np.zeros(1), 1e-5, out, "here")
    with pytest.raises(LoweringError, match="too large for an output scale"):
        normalize_constants(INT16, 64, True, np.full(1, 1e20), np.zeros(1), 1e-5, out, "here")


def integer_graph(**changes: Any) -> Graph:
    """A valid qir.Normalize, with some attributes or constants replaced."""
    c = normalize_constants(INT16, 8, True, np.ones(8), np.zeros(8), 1e-5, QuantParams.make(0.02, 0, DType.INT8), "")
    g = Graph(stage=Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.INT16, ("N", 8)))
    arrays = {"multiplier": c.multiplier_i32, "offset": c.offset_i64, "table": inverse_root_table()}
    attrs: dict[str, Any] = {
        "centre": 1, "x_zero_point": 0, "extra": c.extra, "noise": c.noise, "shift": c.shift, "lo": -128, "hi": 127,
        "dtype": "int8",
    }  # fmt: skip
    values = [g.add_constant(k, changes.get(k, v)) for k, v in arrays.items()]
    attrs |= {k: v for k, v in changes.items() if k in attrs}
    g.set_outputs([g.add_node("qir.Normalize", [x, *values], attrs, outputs=["y"]).output])
    return g


def test_the_proof_of_a_file() -> None:
    verify(integer_graph())
    for change in (
        {"extra": 16}, {"noise": 1 << 62}, {"shift": 63}, {"offset": np.full(8, 1 << 62)},
        {"table": np.roll(inverse_root_table(), 1)}, {"noise": -1},
    ):  # fmt: skip
        with pytest.raises(QirError):
            verify(integer_graph(**change))
