"""Linear layers as y = W x on rows: their weights as (groups, rows, columns), their inputs as samples of columns.

`InputMoments` keeps what rounding needs of the inputs, batch by batch, in memory that does not grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qir.graph import Node
from qir.ops.windows import resolve_pads, windows
from qir.types import Array

Floats = NDArray[np.float64]


def as_rows(node: Node, w: Array) -> Array:
    """Weights as (G, M, K): Conv's groups, and one group for Gemm and MatMul."""
    if node.op == "Conv":
        group = int(node.attrs["group"])
        return w.reshape(group, w.shape[0] // group, -1)
    transposed = node.op == "Gemm" and node.attrs["transB"]
    return (w if transposed else w.T)[None]


def from_rows(node: Node, rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `as_rows`."""
    if node.op == "Conv":
        return rows.reshape(shape)
    transposed = node.op == "Gemm" and node.attrs["transB"]
    return np.ascontiguousarray(rows[0] if transposed else rows[0].T)


def why_not(node: Node, weight_rank: int) -> str | None:
    """A sentence where a layer has no such rows."""
    # policy: layers that are rows of a product
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return f"{node.op} is not rounded with feedback"
    if node.op == "Gemm" and node.attrs["transA"]:
        return "its input is transposed"
    if node.op == "MatMul" and weight_rank != 2:
        return "its weights are no matrix"
    return None


def positions(node: Node, x: Array, w_shape: tuple[int, ...]) -> int:
    """How many columns one batch of inputs gives."""
    if node.op != "Conv":
        return int(np.prod(x.shape[:-1]))
    pads, strides, dilations = resolve_pads(x.shape[2:], w_shape[2:], node.attrs)
    rank = len(w_shape) - 2
    count = x.shape[0]
    for i in range(rank):
        span = (w_shape[2 + i] - 1) * dilations[i] + 1
        count *= (x.shape[2 + i] + pads[i] + pads[rank + i] - span) // strides[i] + 1
    return count


def columns(node: Node, x: Array, w_shape: tuple[int, ...], pick: NDArray[np.int64]) -> Array:
    """(G, P, K) inputs of the layer's sums at the positions `pick` (flat over batch and output positions)."""
    if node.op != "Conv":
        return x.reshape(-1, x.shape[-1])[pick][None]
    pads, strides, dilations = resolve_pads(x.shape[2:], w_shape[2:], node.attrs)
    rank = len(w_shape) - 2
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    view = np.moveaxis(windows(padded, w_shape[2:], strides, dilations), 1, 1 + rank)  # (N, *out, C, *kernel)
    found = view[np.unravel_index(pick, view.shape[: 1 + rank])]  # (P, C, *kernel)
    group = int(node.attrs["group"])
    return np.ascontiguousarray(np.moveaxis(found.reshape(len(pick), group, -1), 0, 1))


@dataclass
class InputMoments:
    """Sums over columns: of x_q x_q^T, x x_q^T, and of both inputs themselves.  (G, K, K) and (G, K), float64.

    All sums are of differences from `origin`, the first batch's mean: products of large means would swallow the rest.
    """

    groups: int
    size: int
    count: float = 0.0
    square: Floats = field(init=False)
    cross: Floats = field(init=False)
    total: Floats = field(init=False)
    total_q: Floats = field(init=False)
    origin: Floats = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.groups, self.size)
        self.square, self.cross = np.zeros((*shape, self.size)), np.zeros((*shape, self.size))
        self.total, self.total_q, self.origin = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, x: Array, x_q: Array, weight: Array | None = None) -> None:
        """Columns (G, P, K) of the float layer's input and of the quantized one's; weight: (P,), of each position."""
        if not self.count:
            self.origin = x_q.mean(axis=1).astype(np.float64)  # a number of the inputs' own dtype
        start = self.origin[:, None, :].astype(x_q.dtype)
        x, x_q = x - start, x_q - start
        share = np.ones(x.shape[1], x_q.dtype) if weight is None else weight.astype(x_q.dtype)
        root = np.sqrt(share)[:, None]
        left, right = x * root, x_q * root
        self.square += np.matmul(np.swapaxes(right, 1, 2), right)  # of one array with itself: BLAS does half of it
        self.cross += np.matmul(np.swapaxes(left, 1, 2), right)
        self.total += np.einsum("gpk,p->gk", x, share, dtype=np.float64)
        self.total_q += np.einsum("gpk,p->gk", x_q, share, dtype=np.float64)
        self.count += float(share.sum(dtype=np.float64))

    def means(self) -> tuple[Floats, Floats]:
        """(E[x], E[x_q])."""
        return self.origin + self.total / self.count, self.origin + self.total_q / self.count

    def second(self, centred: bool) -> tuple[Floats, Floats]:
        """(E[x_q x_q^T], E[x x_q^T]); centred where a bias takes up the means.  The sums are used up."""
        h, c = self.square, self.cross
        h /= self.count
        c /= self.count
        shift, shift_q = self.total / self.count, self.total_q / self.count
        h -= shift_q[:, :, None] * shift_q[:, None, :]
        c -= shift[:, :, None] * shift_q[:, None, :]
        if not centred:
            mean, mean_q = self.means()
            h += mean_q[:, :, None] * mean_q[:, None, :]
            c += mean[:, :, None] * mean_q[:, None, :]
        return h, c
