"""The CPU backend has the reference's bits: every operator, every intermediate tensor, odd geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.dyadic import common_dyadic, dyadic, dyadic_array
from qir.graph import Graph, Stage, Value
from qir.ops.normalize import inverse_root_table, normalize_constants
from qir.runtime import Session
from qir.types import Array, DType, QuantParams, TensorType

pytest.importorskip("numba")


class Net:
    """A random integer graph, built operator by operator."""

    def __init__(self, seed: int, *shape: Any, dtype: str = "uint8") -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net", Stage.INTEGER)
        self.x = self.graph.add_input("x", TensorType(DType(dtype), shape))

    def op(self, op: str, inputs: list[Value | None], **attrs: Any) -> Value:
        return self.graph.add_node(op, inputs, attrs).output

    def const(self, data: Any, dtype: DType | None = None) -> Value:
        return self.graph.add_constant("c", np.asarray(data), dtype)

    def weights(self, shape: tuple[int, ...], bits: int = 8, unsigned: bool = False, full: bool = False) -> Value:
        if unsigned:
            return self.const(self.rng.integers(0, 256, shape).astype(np.uint8))
        top = 127 if bits == 8 else 7
        if full:
            return self.const(self.rng.choice([-top, top], shape).astype(np.int8))
        w = np.clip(np.rint(self.rng.standard_normal(shape) * top / 4), -top, top).astype(np.int8)
        return self.const(w, DType.INT4 if bits == 4 else None)

    def conv(self, x: Value, m: int, kernel: tuple[int, ...], **kw: Any) -> Value:
        rank, group = len(kernel), kw.get("group", 1)
        w = self.weights(
            (m, int(x.shape[1]) // group, *kernel), kw.get("bits", 8), kw.get("unsigned", False), kw.get("full", False)
        )
        bias = self.const(self.rng.integers(-5000, 5000, m).astype(np.int32)) if kw.get("bias", True) else None
        return self.op(
            "qir.Conv", [x, w, bias], strides=list(kw.get("strides", (1,) * rank)), group=group,
            pads=list(kw.get("pads", [(k - 1) // 2 for k in kernel] * 2)), pad_value=kw.get("pad_value", [3]),
            dilations=list(kw.get("dilations", (1,) * rank)), weight_zero_point=kw.get("weight_zero_point", 0),
        )  # fmt: skip

    def requantize(
        self, x: Value, dtype: str = "uint8", ratio: float = 0.003, per_channel: bool = True, zero: int = 0
    ) -> Value:
        kind = DType(dtype)
        r = np.asarray(ratio)
        if per_channel:
            r = (r * self.rng.uniform(0.5, 2, int(x.shape[1]))).reshape(-1, *[1] * (len(x.shape) - 2))
        m, s = dyadic_array(r)
        return self.op(
            "qir.Requantize", [x, self.const(m), self.const(s)], zero_point=zero, lo=kind.lo, hi=kind.hi, dtype=dtype,
            x_zero_point=0,
        )  # fmt: skip

    def add(self, a: Value, b: Value, dtype: str = "uint8", ratios: tuple[float, float] = (0.6, 0.7)) -> Value:
        (m_a, m_b), shift = common_dyadic(list(ratios))
        kind = DType(dtype)
        return self.op(
            "qir.Add", [a, b], a_multiplier=m_a, b_multiplier=m_b, shift=shift, a_zero_point=7, b_zero_point=-2,
            zero_point=1, lo=kind.lo, hi=kind.hi, dtype=dtype,
        )  # fmt: skip

    def mul(self, a: Value, b: Value, dtype: str = "uint8", ratio: float = 0.004) -> Value:
        m, s = dyadic(ratio)
        kind = DType(dtype)
        return self.op(
            "qir.Mul", [a, b], multiplier=m, shift=s, a_zero_point=5, b_zero_point=9, zero_point=3,
            lo=kind.lo, hi=kind.hi, dtype=dtype,
        )  # fmt: skip

    def table(self, x: Value, dtype: str = "uint8", axis: int | None = None) -> Value:
        n = 1 << x.dtype.bits
        kind = DType(dtype)
        shape = (n,) if axis is None else (int(x.shape[axis]), n)
        t = self.rng.integers(kind.lo, kind.hi + 1, shape).astype(kind.numpy)
        return self.op("qir.Table", [x, self.const(t)], axis=axis)


def check(net: Net, outputs: list[Value], batches: tuple[int, ...] = (1, 3), full: bool = False) -> None:
    """Outputs, then every tensor with fusion broken up, equal the reference at each batch size."""
    net.graph.set_outputs(outputs)
    reference, cpu = Session(net.graph), Session(net.graph, "cpu")
    names = [v.name for v in net.graph.values if v.data is None and v.producer is not None]
    x = net.x
    for batch in batches:
        shape = [batch if isinstance(d, str) else d for d in x.shape]
        if x.dtype.is_float:
            feed = net.rng.standard_normal(shape).astype(np.float32) * 2
        elif full:
            feed = np.full(shape, x.dtype.hi, x.dtype.numpy)
        else:
            feed = net.rng.integers(x.dtype.lo, x.dtype.hi + 1, shape).astype(x.dtype.numpy)
        want, got = reference.run({"x": feed}, outputs=names), cpu.run({"x": feed})
        for value in outputs:
            np.testing.assert_array_equal(got[value.name], want[value.name], err_msg=f"batch {batch}: {value.name}")
        for name, array in cpu.run({"x": feed}, outputs=names).items():
            assert array.dtype == want[name].dtype
            np.testing.assert_array_equal(array, want[name], err_msg=f"batch {batch}: intermediate {name}")


CONVS: list[dict[str, Any]] = [
    {"kernel": (1, 1), "channels": 64, "m": 48},
    {"kernel": (1, 1), "channels": 5, "m": 3, "strides": (2, 2)},
    {"kernel": (3, 3), "channels": 3, "m": 17},
    {"kernel": (3, 3), "channels": 32, "m": 40},
    {"kernel": (3, 3), "channels": 16, "m": 16, "pads": [0, 0, 0, 0], "bias": False},
    {"kernel": (3, 3), "channels": 24, "m": 33, "pads": [2, 1, 0, 1]},
    {"kernel": (3, 3), "channels": 7, "m": 9, "strides": (2, 1), "pads": [1, 0, 2, 1]},
    {"kernel": (3, 3), "channels": 8, "m": 16, "dilations": (2, 2), "pads": [2, 2, 2, 2]},
    {"kernel": (5, 5), "channels": 8, "m": 16, "strides": (2, 2), "pads": [1, 2, 2, 1]},
    {"kernel": (7, 7), "channels": 3, "m": 64, "strides": (2, 2)},
    {"kernel": (1, 7), "channels": 12, "m": 20},
    {"kernel": (7, 1), "channels": 12, "m": 20},
    {"kernel": (3, 3), "channels": 12, "m": 24, "group": 3},
    {"kernel": (3, 3), "channels": 20, "m": 20, "group": 20},
    {"kernel": (5, 5), "channels": 33, "m": 33, "group": 33, "strides": (2, 2)},
    {"kernel": (3, 3), "channels": 8, "m": 16, "group": 8},
    {"kernel": (3, 3), "channels": 8, "m": 16, "bits": 4},
    {"kernel": (1, 1), "channels": 70, "m": 90, "bits": 4},
    {"kernel": (3, 3), "channels": 8, "m": 16, "unsigned": True, "weight_zero_point": 131},
    {"kernel": (1, 1), "channels": 8, "m": 16, "unsigned": True, "weight_zero_point": 3},
    {"kernel": (3, 3), "channels": 9, "m": 9, "group": 9, "unsigned": True, "weight_zero_point": 200},
    {"kernel": (3, 3), "channels": 4, "m": 8, "pad_value": [1, 2, 3, 4]},
    {"kernel": (5,), "channels": 6, "m": 10, "strides": (2,)},
    {"kernel": (3,), "channels": 6, "m": 6, "group": 6},
]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", CONVS, ids=lambda c: "-".join(f"{k}{v}" for k, v in c.items()).replace(" ", ""))
def test_convolution(case: dict[str, Any], dtype: str) -> None:
    spatial = (13, 11) if len(case["kernel"]) == 2 else (13,)
    net = Net(1, "N", case["channels"], *spatial, dtype=dtype)
    acc = net.conv(net.x, **{k: v for k, v in case.items() if k != "channels"})
    check(net, [net.requantize(acc)])


@pytest.mark.parametrize(("dtype", "kernel"), [("uint8", (1, 1)), ("uint8", (3, 3)), ("int8", (3, 3))])
def test_no_product_saturates(dtype: str, kernel: tuple[int, int]) -> None:
    """All activations and all weights at their ends: pairs of products leave 16 bits."""
    net = Net(2, "N", 64, 8, 8, dtype=dtype)
    check(net, [net.requantize(net.conv(net.x, 32, kernel, full=True))], full=True)


def test_image_sizes_around_tile_and_block_edges() -> None:
    for height, width in ((1, 1), (2, 3), (4, 4), (7, 7), (15, 16), (30, 5), (5, 70)):
        net = Net(height, "N", 16, height, width)
        a = net.requantize(net.conv(net.x, 24, (3, 3)))
        check(net, [net.requantize(net.conv(a, 10, (1, 1)))], (1, 2))


def test_residual_chain_in_int16() -> None:
    net = Net(3, "N", 16, 9, 9)
    wide = net.requantize(net.conv(net.x, 16, (3, 3)), "int16", 0.5)
    for _ in range(3):
        narrow = net.requantize(wide, ratio=0.01, per_channel=False)
        branch = net.requantize(net.conv(narrow, 16, (3, 3)), "int16", 0.4)
        wide = net.add(wide, branch, "int16")
    check(net, [net.requantize(wide, "int8", 0.01, per_channel=False), wide])


def test_shared_accumulator_and_large_ratio() -> None:
    net = Net(4, "N", 8, 6, 5)
    acc = net.conv(net.x, 8, (1, 1))
    check(net, [net.requantize(acc), net.requantize(acc, "int16", 3.0), net.requantize(acc, "int8", 0.0007)])


def test_add_broadcasts() -> None:
    for shape in ((1, 12, 1, 1), (12, 1, 1), (1, 1, 5, 4), (5, 4), (1, 12, 5, 4), (1, 1, 1, 4), (1,)):
        net = Net(5, "N", 12, 5, 4)
        other = net.const(net.rng.integers(-100, 100, shape).astype(np.int8))
        check(net, [net.add(net.x, other, "int16"), net.add(other, net.x)])


def test_wide_operands_of_a_sum() -> None:
    net = Net(6, "N", 12, 5, 4)
    a, b = net.conv(net.x, 12, (1, 1)), net.conv(net.x, 12, (3, 3))
    check(net, [net.add(a, b, "int16", (0.01, 0.02)), net.add(a, net.x, "int32", (100.0, 3.0))])


def test_squeeze_and_excite() -> None:
    net = Net(7, "N", 12, 6, 6)
    x = net.table(net.requantize(net.conv(net.x, 24, (3, 3))))
    pooled = net.requantize(net.op("qir.ReduceSum", [x], axes=[2, 3], keepdims=1), ratio=1 / 36, per_channel=False)
    gate = net.table(net.requantize(net.conv(net.requantize(net.conv(pooled, 6, (1, 1))), 24, (1, 1))))
    spatial = net.table(net.requantize(net.conv(x, 1, (3, 3))))
    check(net, [net.mul(x, gate), net.mul(spatial, x), net.mul(x, x)])


def test_tables() -> None:
    net = Net(8, "N", 10, 4, 3, dtype="int8")
    check(net, [net.table(net.x), net.table(net.x, "int16", 1), net.table(net.table(net.x, "int8"), "int8", 1)])


def test_requantize_of_rows_and_of_everything() -> None:
    net = Net(9, "N", 5, 4, 3, dtype="int8")
    for shape in ((4, 3), (1, 4, 1), (5, 4, 3), (3,), (5, 1, 1), ()):
        m, s = dyadic_array(net.rng.uniform(0.1, 0.9, shape))
        net.op(
            "qir.Requantize", [net.x, net.const(m), net.const(s)], zero_point=2, lo=0, hi=255, dtype="uint8",
            x_zero_point=-4,
        )  # fmt: skip
    check(net, [n.output for n in net.graph.nodes])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_pooling(dtype: str) -> None:
    net = Net(10, "N", 7, 11, 9, dtype=dtype)
    pool = {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    dilated = {"strides": [1, 1], "pads": [0, 1, 2, 1], "kernel_shape": [2, 3], "dilations": [2, 1]}
    sums = net.op("qir.SumPool", [net.x], pad_value=5, **pool, dilations=[1, 1])
    outs = [
        net.op("MaxPool", [net.x], **pool),
        net.op("MaxPool", [net.x], **dilated),
        net.op("MaxPool", [net.x], **{**pool, "ceil_mode": 1}),
        net.requantize(sums, dtype, 0.1, per_channel=False),
        net.op("qir.SumPool", [net.x], pad_value=-1 if dtype != "uint8" else 0, **dilated),
        net.op("qir.ReduceSum", [net.x], axes=[2, 3], keepdims=0),
        net.op("ReduceMax", [net.x, net.const(np.asarray([2, 3]))], keepdims=1),
    ]
    check(net, outs)


def test_concatenation_in_place_and_nested() -> None:
    net = Net(11, "N", 8, 6, 6)
    a, b = net.requantize(net.conv(net.x, 5, (1, 1))), net.requantize(net.conv(net.x, 7, (3, 3)))
    inner = net.op("Concat", [a, b], axis=1)
    other = net.requantize(net.conv(inner, 4, (3, 3)))
    outer = net.op("Concat", [inner, other, net.x], axis=1)
    rows = net.op("Concat", [a, a], axis=2)
    check(net, [net.requantize(net.conv(outer, 6, (3, 3))), net.requantize(net.conv(rows, 3, (1, 1))), outer])


def test_concat_that_is_not_finished_is_not_read() -> None:
    """A sum that follows one branch of a concatenation reads the whole of it only afterwards."""
    net = Net(12, "N", 4, 5, 5)
    a = net.requantize(net.conv(net.x, 4, (1, 1)))
    joined = net.op("Concat", [a, net.requantize(net.conv(net.x, 4, (3, 3)))], axis=1)
    b = net.requantize(net.conv(net.x, 8, (1, 1)))
    check(net, [net.add(b, joined)])


def test_data_movement() -> None:
    net = Net(13, "N", 8, 6, 4)
    x = net.requantize(net.conv(net.x, 8, (3, 3)))
    split = net.graph.add_node("Split", [x], {"axis": 1, "num_outputs": 2}, outputs=2)
    index = np.repeat(np.arange(6), 2)
    outs = [
        net.requantize(net.conv(split.outputs[0], 4, (3, 3))),
        net.add(split.outputs[0], split.outputs[1]),
        net.op("Gather", [x, net.const(index)], axis=2),
        net.op("Gather", [x, net.const(np.asarray([3, 0, -1]))], axis=1),
        net.op("DepthToSpace", [x], blocksize=2),
        net.op("DepthToSpace", [x], blocksize=2, mode="CRD"),
        net.op("SpaceToDepth", [x], blocksize=2),
        net.op("Transpose", [x], perm=[0, 2, 3, 1]),
        net.table(net.op("Transpose", [x], perm=[0, 3, 1, 2])),
        net.op("Flatten", [x], axis=1),
        net.op("Identity", [x]),
        net.op("Slice", [x, *(net.const(np.asarray(v)) for v in ([1, 0], [6, 4], [1, 2], [2, 1]))]),
        net.op("Slice", [x, *(net.const(np.asarray(v)) for v in ([4], [0], [2], [-2]))]),
        net.op("Pad", [x, net.const(np.asarray([0, 0, 1, 2, 0, 0, 0, 1])), net.const(np.asarray(9, np.uint8))]),
    ]
    shuffled = net.op("Reshape", [x, net.const(np.asarray([0, 2, 4, 6, 4]))])
    shuffled = net.op("Transpose", [shuffled], perm=[0, 2, 1, 3, 4])
    outs.append(net.requantize(net.conv(net.op("Reshape", [shuffled, net.const(np.asarray([0, 8, 6, 4]))]), 4, (3, 3))))
    check(net, outs)


def test_matmul_of_sequences() -> None:
    net = Net(14, "N", 9, 24)
    w = net.const(net.rng.integers(-127, 128, (24, 30)).astype(np.int8))
    acc = net.op(
        "qir.MatMul", [net.x, w, net.const(net.rng.integers(-99, 99, 30).astype(np.int32))], weight_zero_point=0
    )
    m, s = dyadic_array(net.rng.uniform(0.001, 0.002, 30))
    y = net.op(
        "qir.Requantize", [acc, net.const(m), net.const(s)], zero_point=0, lo=-128, hi=127, dtype="int8", x_zero_point=0
    )
    scores = net.op(
        "qir.MatMulActivations", [y, net.op("Transpose", [y], perm=[0, 2, 1])], a_zero_point=3, b_zero_point=4
    )
    check(net, [y, scores])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_border(dtype: str) -> None:
    net = Net(15, "N", 3, 7, 5, dtype="float32")
    kind = DType(dtype).numpy
    scale, zero = net.const(np.float32(0.017)), net.const(np.asarray(3, kind))
    q = net.op("QuantizeLinear", [net.x, scale, zero])
    deep = net.op("DequantizeLinear", [q, scale, zero])
    out = q if dtype == "int16" else net.requantize(net.conv(q, 6, (3, 3)), dtype)
    check(net, [net.op("DequantizeLinear", [out, scale, zero]), deep])


def test_a_sum_of_int32_at_the_border() -> None:
    net = Net(16, "N", 4, 3, 3)
    acc = net.conv(net.x, 5, (3, 3))
    check(net, [net.op("DequantizeLinear", [acc, net.const(np.float32(0.001))]), acc])


def test_many_narrow_groups() -> None:
    """A register block meets more panels than it has vectors."""
    net = Net(17, "N", 40, 9, 9)
    check(
        net,
        [net.requantize(net.conv(net.x, 80, (3, 3), group=20)), net.requantize(net.conv(net.x, 160, (3, 2), group=40))],
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
def test_softmax_along_any_axis_with_masks(dtype: str) -> None:
    net = Net(18, "N", 7, 5, 11, dtype=dtype)
    wide, i = dtype.endswith("16"), np.arange(256)
    scales = (256 * 3e-4, 3e-4) if wide else (0.05,)
    tables = [net.const(np.rint(2.0 ** (30 if wide else 16) * np.exp(-s * i)).astype(np.int64)) for s in scales]
    reciprocal = net.const(np.rint(2.0**39 / (256 + i + 0.5)).astype(np.int64))
    columns, rows = net.rng.random(11) < 0.5, net.rng.random((7, 1, 1)) < 0.5
    masks = [
        None, net.const(columns), net.const(rows), net.const(np.zeros((5, 11), bool)), net.const(rows & columns),
        net.op("Less", [net.x, net.const(np.asarray(net.x.dtype.hi // 2, dtype))]),
    ]  # fmt: skip
    outs = [
        net.op("qir.Softmax", [net.x, tables[0], reciprocal, mask, *tables[1:]], axis=a, zero_point=z, dtype=d)
        for mask in masks for a, z, d in ((1, 0, "uint8"), (-1, -128, "int8"), (2, 0, "uint8"))
    ]  # fmt: skip
    check(net, outs)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_normalization_of_rows_and_channels(dtype: str) -> None:
    net = Net(21, "N", 6, 5, 37, dtype=dtype)
    grid, beta = QuantParams.make(0.01, 5 if dtype == "uint8" else 0, DType(dtype)), net.rng.normal(size=37)

    def normalize(x: Value, gamma: Array, offset: Array, kind: str, centre: bool = True) -> Value:
        target = QuantParams.make(0.02 if kind == "int8" else 0.0002, 3, DType(kind))
        n = int(x.shape[-1])
        c = normalize_constants(grid, n, centre, gamma, offset, 1e-5, target, "here")
        parts = [net.const(v) for v in (c.multiplier_i32, c.offset_i64, inverse_root_table())]
        return net.op(
            "qir.Normalize", [x, *parts], centre=int(centre), x_zero_point=grid.zero_point[0], extra=c.extra,
            noise=c.noise, shift=c.shift, lo=target.dtype.lo, hi=target.dtype.hi, dtype=kind,
        )  # fmt: skip

    rows = [normalize(net.x, net.rng.normal(size=37), beta, kind, centre)
            for kind, centre in (("int8", True), ("int16", False), ("uint8", True))]  # fmt: skip
    channels = net.rng.normal(size=(6, 1, 1))
    across = net.op("Transpose", [net.x], perm=[0, 3, 2, 1])
    check(
        net, [*rows, normalize(net.x, channels, channels, "int16"), normalize(across, np.ones(1), np.ones(6), "int8")]
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_interpolation(dtype: str) -> None:
    net = Net(19, "N", 6, 5, 4, dtype=dtype)

    def along(x: Value, axis: int, n: int, size: int) -> Value:
        weight = net.rng.integers(0, 33, n).astype(np.int32)
        index = [net.const(net.rng.integers(0, size, n)) for _ in range(2)]
        return net.op("qir.Interpolate", [x, *index, net.const(weight), net.const(np.int32(32) - weight)], axis=axis)

    wide = along(along(net.x, 2, 9, 5), 3, 7, 4)
    check(net, [net.requantize(wide, dtype, 2.0**-10, per_channel=False), along(net.x, 1, 5, 6)])


@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("int8", "uint8")])
def test_products_of_activations(dtypes: tuple[str, str]) -> None:
    net = Net(20, "N", 3, 8, 10, dtype=dtypes[0])
    other = net.table(net.x, dtypes[1])
    transposed = net.op("Transpose", [other], perm=[0, 1, 3, 2])
    weights = net.const(net.rng.integers(0, 200, (1, 3, 10, 4)).astype(np.uint8))
    outs = [
        net.op("qir.MatMulActivations", [net.x, transposed], a_zero_point=5, b_zero_point=-3),
        net.op("qir.MatMulActivations", [transposed, net.x], a_zero_point=0, b_zero_point=9),
        net.op("qir.MatMulActivations", [net.x, weights], a_zero_point=0, b_zero_point=9),
    ]
    check(net, outs)
