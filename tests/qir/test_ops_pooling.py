"""Pooling and reductions: reference against onnxruntime on random floats, integer forms bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, QuantParams
from qir.errors import QirError
from qir.runtime.onnxruntime_session import old_runtime

A = QuantParams.make(0.05, 120, DType.UINT8)
B = QuantParams.make(0.021, -3, DType.INT8)
W = QuantParams.make(0.0004, 11, DType.INT16)
OUT = QuantParams.make(0.03, 130, DType.UINT8)
GRIDS = {"uint8": A, "int8": B, "int16": W, "uint4": QuantParams.make(0.4, 7, DType.UINT4)}


def random_pool(seed: int, average: bool) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A random shape and attributes of a pooling whose windows all touch the input."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 3))
    kernel = rng.integers(1, 5, size=rank).tolist()
    dilations = rng.integers(1, 3, size=rank).tolist() if rng.random() < 0.3 else [1] * rank
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = [int(rng.integers(s, s + 9)) for s in spans]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": rng.integers(1, 4, size=rank).tolist()}
    if dilations != [1] * rank:
        attrs["dilations"] = dilations
    mode = rng.integers(0, 4)
    if mode == 0:
        if max(dilations) > 1 or any(s > k for s, k in zip(attrs["strides"], kernel, strict=True)):
            return (2, 3, *spatial), {**attrs, "auto_pad": "VALID"}  # onnxruntime's SAME is wrong or fails there
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    elif mode < 3:
        attrs["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    if mode and rng.random() < 0.5:
        attrs["ceil_mode"] = 1
    if average:
        attrs["count_include_pad"] = int(rng.integers(0, 2))
    return (2, 3, *spatial), attrs


def input_for(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


def beyond_pads(attrs: dict[str, Any]) -> bool:
    """Whether a window may reach past the padding, or the padding is left to the runtime."""
    return bool(attrs.get("ceil_mode")) or attrs.get("auto_pad", "NOTSET") != "NOTSET"


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_on_floats(op: str, seed: int, agree_with_onnxruntime: Any) -> None:
    shape, attrs = random_pool(seed, op == "AveragePool")
    print(f"seed {seed}: {op} {shape} {attrs}")
    if old_runtime() and op == "AveragePool" and attrs.get("count_include_pad") and beyond_pads(attrs):
        pytest.skip("onnxruntime before 1.31 counts what lies beyond the padding in such float windows")
    agree_with_onnxruntime(op, [input_for(shape, seed)], attrs)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_on_integers(op: str, seed: int, grid: str, integer_case: Any) -> None:
    shape, attrs = random_pool(seed + 1000, op == "AveragePool")
    print(f"seed {seed}: {op} {shape} {attrs}")
    out = GRIDS[grid] if op == "MaxPool" else OUT
    graph = integer_case(op, [input_for(shape, seed)], attrs, [GRIDS[grid]], [out], batch=True)
    assert {n.op for n in graph.nodes} & {"MaxPool", "qir.SumPool"}


def test_max_pool_padding_never_wins(integer_case: Any) -> None:
    x = np.full((1, 1, 3, 3), -5.0)  # below the real 0 that a zero padding would be
    integer_case("MaxPool", [x], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}, [A], [A], steps=0)


def test_windows_at_the_border_have_their_own_multiplier(integer_case: Any) -> None:
    x = np.full((1, 2, 4, 4), 1.5)
    attrs = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    graph = integer_case("AveragePool", [x], {**attrs, "count_include_pad": 0}, [A], [OUT])
    assert graph.value("y0.multiplier").shape == (4, 4)
    graph = integer_case("AveragePool", [x], {**attrs, "count_include_pad": 1}, [A], [OUT])
    assert graph.value("y0.multiplier").data.size == 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (2, 3, 9), (1, 4, 1, 1)])
def test_global_pooling(
    op: str, shape: tuple[int, ...], grid: str, integer_case: Any, agree_with_onnxruntime: Any
) -> None:
    x = input_for(shape, 5)
    agree_with_onnxruntime(op, [x], {})
    integer_case(op, [x], {}, [GRIDS[grid]], [OUT], batch=True)


REDUCTIONS = [([2, 3], 1), ([-1], 0), ([1], 1), ([3, 1], 0)]


@pytest.mark.parametrize(("axes", "keepdims"), REDUCTIONS)
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_reductions_on_floats(op: str, axes: list[int], keepdims: int, agree_with_onnxruntime: Any) -> None:
    x = input_for((2, 3, 4, 5), 6)
    agree_with_onnxruntime(op, [x, np.asarray(axes)], {"keepdims": keepdims})
    if keepdims and old_runtime():
        pytest.skip("onnxruntime before 1.31 refuses noop_with_empty_axes=1 without axes on floats")
    agree_with_onnxruntime(op, [x], {"keepdims": keepdims, "noop_with_empty_axes": keepdims}, tol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("axes", "keepdims"), REDUCTIONS)
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
def test_reductions_on_integers(op: str, axes: list[int], keepdims: int, grid: str, integer_case: Any) -> None:
    x = input_for((2, 3, 4, 5), 7)
    out = QuantParams.make(0.3, 120, DType.UINT8) if op == "ReduceSum" else OUT
    integer_case(op, [x, np.asarray(axes)], {"keepdims": keepdims}, [GRIDS[grid]], [out], batch=True)


def test_a_sum_over_the_batch_is_refused(integer_case: Any) -> None:
    with pytest.raises(QirError, match="sums over the batch"):
        integer_case("ReduceMean", [input_for((2, 3), 8), np.asarray([0])], {}, [A], [A], batch=True)


def test_a_sum_too_long_for_int32_is_refused(integer_case: Any) -> None:
    x = np.zeros((1, 1, 40000), np.float32)
    with pytest.raises(QirError, match="does not fit int32"):
        integer_case("GlobalAveragePool", [x], {}, [W], [A])
