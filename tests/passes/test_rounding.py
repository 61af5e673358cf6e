"""Rounding with error feedback and AdaRound on arrays: never worse than nearest, and better where inputs correlate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qir.graph import Graph, Node
from qir.ops import op_of
from qir.passes.rounding.adaround import AdaRoundOptions, Samples, adaround, clipped, identity
from qir.passes.rounding.error_feedback import (
    Grid,
    damped,
    descend,
    output_error,
    round_rows,
    shifted_target,
    with_feedback,
)
from qir.passes.rounding.layer_rows import InputMoments, as_rows, columns, from_rows, positions
from qir.types import Array, DType, TensorType


def layer(seed: int, g: int, m: int, k: int, p: int = 400) -> tuple[Array, Array, Array, Grid]:
    """Random weights, correlated inputs (G, P, K), their second moments, a 4-bit grid."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((g, m, k))
    x = rng.standard_normal((g, p, k)) @ rng.standard_normal((g, k, k)) + rng.standard_normal((g, 1, k))
    h = np.swapaxes(x, 1, 2) @ x / p
    scale = (np.abs(w).max(axis=2) / 7).astype(np.float32).astype(np.float64)
    return w, x, h, Grid(scale, 7)


@pytest.mark.parametrize(("g", "m", "k"), [(1, 16, 24), (6, 1, 9), (3, 4, 18), (1, 5, 300)])
@pytest.mark.parametrize("refit", [False, True])
def test_the_output_error_is_never_worse_than_nearest(g: int, m: int, k: int, refit: bool) -> None:
    for seed in range(4):
        w, x, h, grid = layer(seed, g, m, k)
        found = round_rows(w, h, grid, refit=refit)
        assert np.abs(found.q).max() <= 7
        assert np.array_equal(found.q, np.rint(found.q))
        for q, scale, error in ((found.q, found.scale, found.error), (grid.nearest(w), grid.scale, found.nearest)):
            d = x @ np.swapaxes(w - q * scale[..., None], 1, 2)
            assert error == pytest.approx(float((d**2).mean(axis=1).sum()), rel=1e-9)
        rows = output_error(w, found.q, found.scale, h) - output_error(w, grid.nearest(w), grid.scale, h)
        assert (rows <= 1e-12).all(), f"seed {seed}"
        assert found.error < (0.7 if k > 9 else 0.9) * found.nearest, f"seed {seed}"


def test_feedback_is_exact_where_it_can_be() -> None:
    """Uncorrelated inputs: rounding to nearest is the best there is, and is what feedback does."""
    w, _, _, grid = layer(5, 2, 3, 7)
    h = np.broadcast_to(np.diag(np.arange(1.0, 8.0)), (2, 7, 7))
    np.testing.assert_array_equal(with_feedback(w, damped(h, 1e-9), grid), grid.nearest(w))


def test_descent_never_grows_the_error_and_ends_where_no_single_change_helps() -> None:
    w, _, h, grid = layer(6, 1, 4, 12)
    h = damped(h, 0.01).h
    q = grid.nearest(w)
    errors = [output_error(w, q, grid.scale, h).sum()]
    for _ in range(20):
        q = descend(w, q, h, grid)
        errors.append(output_error(w, q, grid.scale, h).sum())
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))
    best = output_error(w, q, grid.scale, h).sum()
    for i, j, step in itertools.product(range(4), range(12), (-1, 1)):
        other = q.copy()
        other[0, i, j] = np.clip(other[0, i, j] + step, -7, 7)
        assert output_error(w, other, grid.scale, h).sum() >= best - 1e-12


@pytest.mark.parametrize(("g", "m", "k"), [(1, 6, 300), (3, 2, 130), (4, 1, 9)])
def test_blocks_change_nothing(g: int, m: int, k: int) -> None:
    """Descent and solving go in blocks of columns; one column at a time gives the same."""
    w, _, h, grid = layer(7, g, m, k)
    metric = damped(h, 0.01)
    b = np.random.default_rng(8).standard_normal((g, k, 5))
    np.testing.assert_allclose(metric.solve(b), np.linalg.solve(metric.h, b), rtol=1e-6, atol=1e-9)
    q = grid.nearest(w)
    found = descend(w, q, metric.h, grid)
    for j in np.argsort(-np.diagonal(metric.h, axis1=1, axis2=2).mean(axis=0), kind="stable"):
        pull = np.einsum("gmk,gk->gm", w - q * grid.scale[..., None], metric.h[:, :, j])
        free = q[:, :, j] + pull / (metric.h[:, None, j, j] * grid.scale)
        q[:, :, j] = np.clip(np.rint(free), -7, 7)
    np.testing.assert_array_equal(found, q)


def test_moments_that_are_no_use_are_refused() -> None:
    for bad in (np.nan, np.inf):
        h = np.eye(4)[None].copy()
        h[0, 1, 1] = bad
        with pytest.raises(np.linalg.LinAlgError, match="not finite"):
            damped(h, 0.01)


def test_it_comes_close_to_the_best_there_is() -> None:
    """Brute force over the four grid points around each weight of a small row."""
    sums = np.zeros(3)
    for seed in range(20):
        w, _, h, grid = layer(seed, 1, 1, 5)
        found = round_rows(w, h, grid, sweeps=4)
        down = np.floor(w / grid.scale[..., None])
        options = [np.clip(down[0, 0, j] + np.arange(-1, 3), -7, 7) for j in range(5)]
        every = np.asarray(list(itertools.product(*options)))[None]
        scales = np.full((1, every.shape[1]), grid.scale[0, 0])
        best = output_error(np.broadcast_to(w, every.shape), every, scales, h).min()
        assert best <= found.error + 1e-12
        sums += (best, found.error, found.nearest)
    assert sums[1] < 1.2 * sums[0], sums
    assert sums[1] < 0.9 * sums[2], sums


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    w, x, _, grid = layer(8, 1, 3, 10)
    x[:, :, [2, 7]] = 0
    found = round_rows(w, np.swapaxes(x, 1, 2) @ x / len(x), grid)
    assert np.isfinite(found.error)
    broken = np.eye(10)[None] - 1.02 * np.full((1, 10, 10), 0.1)  # one eigenvalue below zero
    assert round_rows(w, broken, grid).error <= round_rows(w, broken, grid).nearest
    broken[0, 3, 3] = np.nan
    np.testing.assert_array_equal(round_rows(w, broken, grid).q, grid.nearest(w))
    dead = np.zeros((1, 10, 10))
    assert round_rows(w, dead, grid).error == 0


def test_the_shifted_target_reproduces_the_float_output() -> None:
    rng = np.random.default_rng(9)
    w, x = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 500, 5))
    x_q = 0.8 * x + 0.1 * rng.standard_normal(x.shape)
    h, cross = np.swapaxes(x_q, 1, 2) @ x_q / 500, np.swapaxes(x, 1, 2) @ x_q / 500
    v = shifted_target(w, cross - h, damped(h, 1e-9))

    def error(u: Array) -> float:
        return float(((x @ np.swapaxes(w, 1, 2) - x_q @ np.swapaxes(u, 1, 2)) ** 2).mean())

    assert error(v) < 0.5 * error(w)
    for _ in range(10):
        assert error(v + 1e-3 * rng.standard_normal(v.shape)) > error(v)


def node_of(op: str, x: tuple[int, ...], w: tuple[int, ...], **attrs: object) -> Node:
    graph = Graph()
    values = [graph.add_input("x", TensorType(DType.FLOAT32, x)), graph.add_constant("w", np.zeros(w, np.float32))]
    return graph.add_node(op, values, attrs)


@pytest.mark.parametrize(
    "node",
    [
        node_of("Conv", (2, 4, 6, 5), (6, 4, 3, 3), pads=[1, 0, 1, 2], strides=[2, 1]),
        node_of("Conv", (2, 4, 6, 5), (4, 1, 3, 2), group=4, auto_pad="SAME_UPPER", dilations=[2, 1]),
        node_of("Conv", (3, 4, 9), (6, 2, 3), group=2),
        node_of("Gemm", (5, 4), (7, 4), transB=1),
        node_of("Gemm", (5, 4), (4, 7)), node_of("MatMul", (2, 3, 4), (4, 7)),
    ],
    ids=str,
)  # fmt: skip
def test_rows_times_columns_are_the_layer(node: Node) -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(v.shape) for v in (node.input(0), node.input(1)))  # type: ignore[arg-type]
    y = op_of(node.op).reference(node.attrs, x, w)[0]
    rows = as_rows(node, w)
    total = positions(node, x, w.shape)
    sums = columns(node, x, w.shape, np.arange(total)) @ np.swapaxes(rows, 1, 2)  # (G, P, M)
    flat = np.moveaxis(sums, 0, 1).reshape(total, -1)
    expected = np.moveaxis(y, 1, -1) if node.op == "Conv" else y
    np.testing.assert_allclose(flat, expected.reshape(total, -1), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(from_rows(node, rows, w.shape), w)


def test_moments_do_not_depend_on_the_batches() -> None:
    rng = np.random.default_rng(2)
    x, x_q = rng.standard_normal((2, 2, 30, 4))
    whole, parts = InputMoments(2, 4), InputMoments(2, 4)
    whole.add(x, x_q)
    for i in range(0, 30, 10):
        parts.add(x[:, i : i + 10], x_q[:, i : i + 10])
    for a, b in zip(whole.second(True), parts.second(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    centred = x_q - x_q.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(parts.square, np.swapaxes(centred, 1, 2) @ centred / 30, rtol=1e-9, atol=1e-12)


def test_moments_weigh_positions() -> None:
    rng = np.random.default_rng(4)
    x, x_q = rng.standard_normal((2, 3, 40, 5))
    share = rng.random(40) + 0.02
    moments = InputMoments(3, 5)
    moments.add(x[:, :25], x_q[:, :25], share[:25])
    moments.add(x[:, 25:], x_q[:, 25:], share[25:])
    h, cross = moments.second(False)
    for got, left in ((h, x_q), (cross, x)):
        want = np.einsum("gpi,gpj,p->gij", left, x_q, share) / share.sum()
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_large_means_do_not_swallow_the_variances() -> None:
    rng = np.random.default_rng(3)
    x = (1e4 + rng.standard_normal((1, 2000, 3))).astype(np.float32)
    moments = InputMoments(1, 3)
    for i in range(0, 2000, 500):
        moments.add(x[:, i : i + 500], x[:, i : i + 500])
    exact = np.cov(x[0].astype(np.float64).T, bias=True)
    np.testing.assert_allclose(moments.means()[0][0], x[0].mean(axis=0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(moments.second(True)[0][0], exact, atol=2e-3)


@pytest.mark.parametrize(("g", "m", "k"), [(1, 8, 18), (5, 1, 9)])
@pytest.mark.parametrize("relu", [False, True])
def test_adaround_beats_nearest(g: int, m: int, k: int, relu: bool) -> None:
    w, x, _, grid = layer(11, g, m, k)
    samples = Samples(400)
    samples.add(x, x, 1, np.random.default_rng(0))
    f = clipped(0.0, np.inf) if relu else identity
    found = adaround(w, grid, samples, np.zeros((g, m)), f, AdaRoundOptions(iterations=600))
    assert np.array_equal(found.q, np.rint(found.q))
    assert np.abs(found.q - w / grid.scale[..., None]).max() < 1 + 1e-6  # down or up, nothing else
    d = f(np, x @ np.swapaxes(found.q * grid.scale[..., None], 1, 2))[0] - f(np, x @ np.swapaxes(w, 1, 2))[0]
    assert found.error == pytest.approx(float((d**2).mean(axis=1).sum()), rel=1e-3)
    assert found.error < 0.9 * found.nearest
