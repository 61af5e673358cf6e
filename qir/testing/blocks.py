"""The blocks that random networks are made of (see `testing`): layers, branches, gates, movements, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..graph import Graph, Value
from ..types import Array, DType, TensorType
from .attention import SPELLINGS, AttentionBuilder

T = TypeVar("T")
MOST = 9
"""Sizes of activations stay between 10**-MOST and 10**MOST."""


@dataclass(frozen=True)
class BlockTensor:
    """A float value and the power of ten of what it holds."""

    value: Value
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes without the batch."""
        return tuple(int(d) for d in self.value.shape[1:])


class BlockBuilder:
    """A network under construction: its graph, the tensors so far, and the stream of choices."""

    def __init__(self, choices: Any, rng: np.random.Generator) -> None:
        self.choices, self.rng = choices, rng
        self.graph = Graph("random")
        self.live: list[BlockTensor] = []

    def integer(self, lo: int, hi: int) -> int:
        return self.choices.integer(lo, hi)

    def coin(self, one_in: int = 2) -> bool:
        """True once in `one_in`; the simplest is False."""
        return self.integer(0, one_in - 1) == one_in - 1

    def pick(self, items: Sequence[T]) -> T:
        return items[self.integer(0, len(items) - 1)]

    def new_input(self) -> BlockTensor:
        c, odd = self.integer(1, 12), [7, 8, 5, 9, 12, 1, 3]
        shape = self.pick([(c, self.pick(odd), self.pick(odd)), (c, self.pick(odd)), (self.integer(1, 24),)])
        if self.coin(3):
            shape = (c, 8, 8)
        name = f"x{len(self.graph.inputs)}"
        tensor = BlockTensor(
            self.graph.add_input(name, TensorType(DType.FLOAT32, ("N", *shape))), self.pick([0, 0, 0, -3, 3])
        )
        self.live.append(tensor)
        return tensor

    def const(self, data: Any) -> Value:
        array = np.asarray(data)
        return self.graph.add_constant("c", array.astype(np.float32) if array.dtype.kind == "f" else array)

    def ints(self, *data: int) -> Value:
        return self.const(np.asarray(data, dtype=np.int64))

    def op(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.graph.add_node(name, inputs, attrs, outputs=[self.graph.fresh("t")]).output

    def growth(self, size: int, most: int = MOST) -> int:
        """A power of ten for weights, 1e-6 to 1e6, that keeps the result's size in bounds; mostly near one."""
        k = self.pick([0, 0, 0, 0, 0, -1, 1, -3, 3, -6, 6])
        return k if abs(size + k) <= most else 0

    def weights(self, shape: Sequence[int], k: int, channels: int, axis: int = 0) -> Array:
        """Normal weights of a He-like size times 10**k; channels of unlike sizes, some dead."""
        w = self.rng.normal(size=shape) * np.sqrt(2.0 / max(1, np.prod(shape) / channels)) * 10.0**k
        spread = np.ones(channels)
        if self.coin(4):
            spread *= 10.0 ** self.rng.uniform(-2, 2, channels)
        if self.coin(4):
            spread[self.rng.random(channels) < 0.3] = 0
        view = [1] * len(shape)
        view[axis] = channels
        return np.asarray(w * spread.reshape(view), dtype=np.float32)

    def bias(self, channels: int, size: int) -> Array:
        """A bias of about the result's size; now and then a thousand times larger or smaller."""
        k = size + self.pick([0, 0, 0, 0, -3, 2])
        return (self.rng.normal(size=channels) * 0.5 * 10.0**k).astype(np.float32)

    def tail(self, y: Value, size: int) -> BlockTensor:
        """Perhaps batch normalization, perhaps an activation."""
        channels = int(y.shape[1]) if y.type.rank > 2 else 0
        if channels and self.coin(3):
            variance = 10.0 ** (2 * size) * self.rng.uniform(0.2, 2, channels)
            stats = [
                self.rng.normal(1, 0.5, channels), self.rng.normal(size=channels),
                self.rng.normal(size=channels) * 10.0**size, np.minimum(variance, 1e30),
            ]  # fmt: skip
            y, size = self.op("BatchNormalization", y, *map(self.const, stats), epsilon=1e-5), 0
        return activation(self, BlockTensor(y, size)) if self.coin(2) else BlockTensor(y, size)


Block = Callable[[BlockBuilder, BlockTensor], BlockTensor]


# -- layers -----------------------------------------------------------------------------------
def conv(b: BlockBuilder, x: BlockTensor, channels: int | None = None, *, same: bool = False) -> BlockTensor:
    """A convolution, 1-D or 2-D: dense, grouped or depthwise; any kernel, stride, dilation, padding."""
    c, spatial = x.shape[0], x.shape[1:]
    group = b.pick([1, 1, c, *(g for g in (2, 3, 4) if c % g == 0)])
    out = channels or (c * b.integer(1, 2) if group == c else group * b.integer(1, max(1, 12 // group)))
    if out % group:
        group = 1
    kernel = [1 if same and b.coin() else b.pick([3, 1, 2]) for _ in spatial]
    attrs: dict[str, Any] = {"group": group, "kernel_shape": kernel}
    if same:
        attrs["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER"])
    else:
        dilations = [b.pick([1, 1, 2]) for _ in spatial]
        pads = [[b.integer(0, 2) for _ in spatial] for _ in range(2)]
        for i, n in enumerate(spatial):  # at least one whole window
            reach = (kernel[i] - 1) * dilations[i] + 1
            if n + pads[0][i] + pads[1][i] < reach:
                dilations[i], pads[0][i], pads[1][i] = 1, 1, 1
        attrs |= {"dilations": dilations, "pads": pads[0] + pads[1], "strides": [b.pick([1, 1, 2, 3]) for _ in spatial]}
    k = b.growth(x.size)
    w = b.weights((out, c // group, *kernel), k, out)
    bias = b.const(b.bias(out, x.size + k)) if b.coin() else None
    return b.tail(b.op("Conv", x.value, b.const(w), *([bias] if bias else []), **attrs), x.size + k)


def conv_transpose(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """A transposed convolution: groups, strides, dilation, output padding."""
    c, spatial = x.shape[0], x.shape[1:]
    if max(spatial) > 16:
        return conv(b, x)
    group = b.pick([1, *(g for g in (2, 3, c) if c % g == 0)])
    m = b.integer(1, max(1, 8 // group))
    strides = [b.pick([2, 1, 3]) for _ in spatial]
    kernel = [b.integer(1, 4) for _ in spatial]
    dilations = [b.pick([1, 1, 2]) for _ in spatial]
    pads = [b.integer(0, min(1, (kernel[i] - 1) * dilations[i] // 2)) for i in range(len(spatial))]
    extra = [b.integer(0, s - 1) for s in strides]
    k = b.growth(x.size)
    w = b.weights((c, m, *kernel), k, m, 1)
    bias = [b.const(b.bias(m * group, x.size + k))] if b.coin() else []
    y = b.op(
        "ConvTranspose", x.value, b.const(w), *bias, group=group, strides=strides, dilations=dilations,
        pads=pads + pads, output_padding=extra, kernel_shape=kernel,
    )  # fmt: skip
    return b.tail(y, x.size + k)


def linear(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Gemm (either orientation, alpha and beta) or MatMul, with and without a bias."""
    features, out = x.shape[-1], b.integer(1, 16)
    k = b.growth(x.size)
    if x.value.type.rank == 2 and b.coin():
        turned = b.integer(0, 1)
        w = b.weights((out, features) if turned else (features, out), k, out, 1 - turned)
        alpha, beta = b.pick([(1.0, 1.0), (0.5, 2.0)])
        bias = [b.const(b.bias(out, x.size + k))] if b.coin() else []
        return b.tail(b.op("Gemm", x.value, b.const(w), *bias, transB=turned, alpha=alpha, beta=beta), x.size + k)
    y = b.op("MatMul", x.value, b.const(b.weights((features, out), k, out, 1)))
    return b.tail(b.op("Add", y, b.const(b.bias(out, x.size + k))) if b.coin() else y, x.size + k)


def activation(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Any activation function."""
    name = b.pick([
        "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Elu", "Softplus",
        "Erf", "Abs", "Neg", "Silu", "Exp", "Sqrt",
    ])  # fmt: skip
    v = x.value
    if name == "Clip":
        lo, hi = b.pick([(0.0, 6.0), (-1.0, 1.0), (0.25, 2.0)])
        ends = [b.const(np.float32(end * 10.0**x.size)) for end in (lo, hi)]
        return BlockTensor(b.op("Clip", v, *ends), x.size)
    if name == "PRelu":
        slope = b.rng.normal(size=(x.shape[0], *[1] * (len(x.shape) - 1))) * 0.3
        return BlockTensor(b.op("PRelu", v, b.const(slope)), x.size)
    if name == "Silu":
        return BlockTensor(b.op("Mul", v, b.op("Sigmoid", v)), x.size)
    if name == "Exp":
        return BlockTensor(b.op("Exp", b.op("Clip", v, b.const(np.float32(-9)), b.const(np.float32(5)))), 0)
    if name == "Sqrt":
        return BlockTensor(b.op("Sqrt", b.op("Relu", v)), x.size // 2)
    bounded = name in ("Sigmoid", "Tanh", "HardSigmoid", "Erf")
    return BlockTensor(b.op(name, v), 0 if bounded or (name == "Softplus" and x.size < 0) else x.size)


def constant_affine(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Plus, minus, times or over a number, or one for each channel."""
    shape = (x.shape[0], *[1] * (len(x.shape) - 1)) if b.coin() else ()
    c = b.rng.uniform(0.5, 2, shape) * b.rng.choice([-1, 1], shape)
    name = b.pick(["Add", "Mul", "Sub", "Div"])
    c = c * 10.0**x.size if name in ("Add", "Sub") else c
    pair = (x.value, b.const(c)) if name == "Div" or not b.coin(3) else (b.const(c), x.value)
    return BlockTensor(b.op(name, *pair), x.size)


# -- branches ---------------------------------------------------------------------------------
def residual(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """x with a layer of itself: sum, difference, maximum, minimum, product."""
    y = conv(b, x, x.shape[0], same=True) if len(x.shape) > 1 else activation(b, x)
    names = ["Add", "Add", "Sub", "Max", "Min", "Sum"] + (["Mul"] if abs(x.size + y.size) <= MOST else [])
    name = b.pick(names)
    pair = (x.value, y.value) if b.coin() else (y.value, x.value)
    size = x.size + y.size if name == "Mul" else max(x.size, y.size)
    return b.tail(b.op(name, *pair), size)


def concat(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Two or three branches joined, x itself perhaps among them."""
    parts = [x] if b.coin() else []
    while len(parts) < b.pick([2, 3]):
        parts.append(conv(b, x, b.integer(1, 8), same=True) if len(x.shape) > 1 else activation(b, x))
    return b.tail(b.op("Concat", *(p.value for p in parts), axis=1), max(p.size for p in parts))


def gate(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Squeeze and excite."""
    c, mid = x.shape[0], b.integer(1, 4)
    one = [1] * (len(x.shape) - 1)
    y = b.op("GlobalAveragePool", x.value)
    y = b.op("Relu", b.op("Conv", y, b.const(b.weights((mid, c, *one), -x.size, mid)), b.const(b.bias(mid, 0))))
    y = b.op("Conv", y, b.const(b.weights((c, mid, *one), 0, c)), b.const(b.bias(c, 0)))
    return BlockTensor(b.op("Mul", x.value, b.op(b.pick(["Sigmoid", "HardSigmoid"]), y)), x.size)


def halves(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Split along the channels, a function of one part, joined the other way round."""
    c = x.shape[0]
    if c < 2:
        return activation(b, x)
    first = b.integer(1, c - 1)
    node = b.graph.add_node("Split", [x.value, b.ints(first, c - first)], {"axis": 1}, outputs=2)
    low, high = node.outputs
    changed = activation(b, BlockTensor(low, x.size))
    return BlockTensor(b.op("Concat", high, changed.value, axis=1), max(x.size, changed.size))


def attention(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Softmax(q k^T) v over the channels of a sequence: plain, or by heads, with a mask in one of the spellings."""
    d, length = x.shape[-1], x.shape[0]
    if d > 16 or abs(x.size) > 3:
        return activation(b, x)
    q, k, v = (b.op("MatMul", x.value, b.const(b.weights((d, d), -x.size, d, 1))) for _ in range(3))
    if not b.coin():
        scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
        return BlockTensor(b.op("MatMul", scores, v), 0)
    heads = next(h for h in (3, 2, 1) if d % h == 0)
    masked, spelling = AttentionBuilder(length, heads, d // heads, x=x.value), b.pick(list(SPELLINGS.values()))

    def split(y: Value, *perm: int) -> Value:
        return b.op("Transpose", b.op("Reshape", y, b.ints(0, length, heads, d // heads)), perm=list(perm))

    weights = spelling(masked, b.op("MatMul", split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1)))
    y = b.op("Transpose", b.op("MatMul", weights, split(v, 0, 2, 1, 3)), perm=[0, 2, 1, 3])
    return BlockTensor(b.op("Reshape", y, b.ints(0, length, d)), 0)


# -- movements, pools and heads ---------------------------------------------------------------
def pool(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Maximum and average pools, with and without the padding counted; global ones."""
    n = len(x.shape) - 1
    name = b.pick(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"])
    if name.startswith("Global"):
        return BlockTensor(b.op(name, x.value), x.size)
    if name.startswith("Reduce"):
        axis = b.integer(1, n + 1)
        return BlockTensor(b.op(name, x.value, b.ints(axis), keepdims=1), x.size)
    kernel = [min(b.integer(1, 3), d) for d in x.shape[1:]]
    pads = [b.integer(0, k // 2) for k in kernel] * 2
    strides = [b.integer(1, 2) for _ in kernel]
    attrs: dict[str, Any] = {"strides": strides}
    # where a last window would start in the padding, onnx's own shape inference is one off
    spare = [-(n + 2 * p - k) % s for n, k, p, s in zip(x.shape[1:], kernel, pads, strides, strict=False)]
    if all(r <= k - p - 1 for r, k, p in zip(spare, kernel, pads, strict=False)):
        attrs["ceil_mode"] = b.integer(0, 1)
    if name == "AveragePool":
        attrs["count_include_pad"] = b.integer(0, 1)
    return BlockTensor(b.op(name, x.value, kernel_shape=kernel, pads=pads, **attrs), x.size)


def resize(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Nearest and bilinear, up and down."""
    if max(x.shape[1:]) > 16:
        return pool(b, x)
    scales = [1.0, 1.0, *(b.pick([2.0, 1.0, 3.0]) for _ in x.shape[1:])]
    mode = b.pick(["nearest", "linear"])
    how = b.pick(["half_pixel", "asymmetric"] + (["align_corners"] if mode == "linear" else []))
    attrs = {"nearest_mode": b.pick(["floor", "round_prefer_floor"])} if mode == "nearest" else {}
    scale = b.const(np.asarray(scales, dtype=np.float32))
    return BlockTensor(
        b.op("Resize", x.value, None, scale, mode=mode, coordinate_transformation_mode=how, **attrs), x.size
    )


def shuffle(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Channels shuffled by Reshape, Transpose, Reshape."""
    c, rest = x.shape[0], x.shape[1:]
    group = next((g for g in (2, 3, 5, 7) if c % g == 0), 1)
    y = b.op("Reshape", x.value, b.ints(0, group, c // group, *rest))
    y = b.op("Transpose", y, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return BlockTensor(b.op("Reshape", y, b.ints(0, c, *rest)), x.size)


def move(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """Slices, paddings, transpositions and gathers."""
    n, last = len(x.shape), x.shape[-1]
    name = b.pick(["Slice", "Pad", "Transpose", "Gather", "Depth"])
    if name == "Slice" and last > 1:
        return BlockTensor(b.op("Slice", x.value, b.ints(1), b.ints(last), b.ints(n), b.ints(b.integer(1, 2))), x.size)
    if name == "Transpose" and n > 1:
        perm = [0, *(1 + i for i in b.rng.permutation(n))]
        return BlockTensor(b.op("Transpose", x.value, perm=[int(p) for p in perm]), x.size)
    if name == "Gather":
        return BlockTensor(b.op("Gather", x.value, b.const(b.rng.integers(0, x.shape[0], x.shape[0])), axis=1), x.size)
    if name == "Depth" and n == 3 and x.shape[0] % 4 == 0:
        return BlockTensor(b.op("DepthToSpace", x.value, blocksize=2, mode=b.pick(["DCR", "CRD"])), x.size)
    amounts = [0, *(b.integer(0, 1) for _ in x.shape)]
    return BlockTensor(b.op("Pad", x.value, b.ints(*amounts, *amounts)), x.size)


def flatten(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    """To vectors."""
    if int(np.prod(x.shape)) > 400:
        x = BlockTensor(b.op("GlobalAveragePool", x.value), x.size)
    return BlockTensor(b.op("Flatten", x.value, axis=1), x.size)


def softmax(b: BlockBuilder, x: BlockTensor) -> BlockTensor:
    return BlockTensor(b.op("Softmax", x.value, axis=b.pick([-1, 1])), 0) if abs(x.size) <= 2 else activation(b, x)


IMAGES, SEQUENCES, VECTORS = 4, 3, 2
BLOCKS: tuple[tuple[Block, tuple[int, ...]], ...] = (
    (conv, (IMAGES, SEQUENCES)), (linear, (VECTORS, SEQUENCES)), (residual, (IMAGES, SEQUENCES, VECTORS)),
    (concat, (IMAGES, SEQUENCES, VECTORS)), (activation, (IMAGES, SEQUENCES, VECTORS)), (pool, (IMAGES, SEQUENCES)),
    (gate, (IMAGES, SEQUENCES)), (halves, (IMAGES, SEQUENCES, VECTORS)), (conv_transpose, (IMAGES, SEQUENCES)),
    (resize, (IMAGES, SEQUENCES)), (shuffle, (IMAGES, SEQUENCES)), (move, (IMAGES, SEQUENCES, VECTORS)),
    (constant_affine, (IMAGES, SEQUENCES, VECTORS)), (flatten, (IMAGES, SEQUENCES)), (softmax, (VECTORS, SEQUENCES)),
    (attention, (SEQUENCES,)),
)  # fmt: skip
"""Each block and the ranks of the tensors that it takes."""
