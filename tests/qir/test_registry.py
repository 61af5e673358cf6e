"""Every operator is whole: documented, typed, executable, with a way to integers and, for our own, an ONNX form."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from qir.ops import REGISTRY, REQUIRED, Op, op_of
from qir.types import Array


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_operator_is_complete(name: str) -> None:
    op = op_of(name)
    cls = type(op)
    assert cls.__doc__ and cls.__doc__.strip(), "no docstring"
    assert op.name == name
    assert cls.infer is not Op.infer and cls.reference is not Op.reference
    assert not inspect.isabstract(cls)
    if op.is_integer_op:
        assert cls.function_body is not Op.function_body, "an integer operator needs its standard-ONNX form"
    else:
        assert cls.to_integer is not Op.to_integer, "a float operator says how it becomes integers, or why it cannot"
    if getattr(op, "standard_since", 0) > 21 or cls.needs_function is not Op.needs_function:
        assert cls.function_body is not Op.function_body
    names = [w.rstrip("?*") for w in f"{op.inputs} {op.outputs}".split()]
    assert len(set(names)) == len(names), "an input and an output share a name"
    for index in op.shape_inputs:
        assert index < len(op.inputs.split())


@pytest.mark.parametrize("name", sorted(n for n in REGISTRY if n.startswith("qir.")))
def test_integer_operators_give_their_definition(name: str) -> None:
    """The docstring of an integer operator holds its equation: it is the specification."""
    assert "=" in (type(op_of(name)).__doc__ or "")


# -- facts ------------------------------------------------------------------------------------------------------------
TRAITS = (
    "linear", "trained", "additive", "affine", "pools", "clamps", "limits", "moves", "keeps_order", "chooses", "orders",
    "commutative", "pointwise", "homogeneous", "nonnegative", "flat", "float_only", "border",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_facts_agree(name: str) -> None:
    """Traits are booleans, none excludes another that is claimed too, and what they promise as methods is there."""
    op = op_of(name)
    cls = type(op)
    assert all(isinstance(getattr(op, t), bool) for t in TRAITS)
    assert op.linear == (cls.macs is not Op.macs), "a linear operator counts its multiply-accumulates"
    assert op.weights is None or (op.linear and 0 < op.weights < len(op.inputs.split()))
    assert not (op.moves and op.chooses) and op.moves >= op.keeps_order
    assert not (op.float_only and op.is_integer_op)
    assert not op.orders or op.flat
    if op.accumulates:
        assert cls.overflows is not Op.overflows, "an operator that accumulates proves that it stays in its width"
    if cls.accumulator_interval is not Op.accumulator_interval:
        assert op.accumulates


def test_every_fact_is_used() -> None:
    """A trait that no operator has, or all have, says nothing."""
    for trait in TRAITS:
        having = sum(getattr(op, trait) for op in REGISTRY.values())
        assert 0 < having < len(REGISTRY), trait


def _value(name: str, x: Array, **attrs: Any) -> Array:
    op = op_of(name)
    return op.reference(op.complete(attrs, name), x)[0]


ONE_TENSOR = sorted(n for n, op in REGISTRY.items() if op.inputs == "x" and not n.startswith("qir."))


@pytest.mark.parametrize("name", [n for n in ONE_TENSOR if op_of(n).pointwise])
def test_pointwise_operators_are(name: str) -> None:
    x = np.random.default_rng(0).normal(size=24).astype(np.float32) ** 2 + 0.1
    order = np.random.default_rng(1).permutation(24)
    assert np.array_equal(_value(name, x)[order], _value(name, x[order]), equal_nan=True)


@pytest.mark.parametrize(
    "name", [n for n, op in REGISTRY.items() if op.homogeneous and REQUIRED not in op.attrs.values()]
)
def test_homogeneous_operators_are(name: str) -> None:
    """f(s x) = s f(x), s a power of two in each channel: exact."""
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 4)).astype(np.float32)
    s = np.asarray([0.5, 2.0, 4.0], np.float32).reshape(1, 3, 1, 1)
    rest = {
        "PRelu": [np.asarray(0.25, np.float32)], "Reshape": [np.asarray([0, 3, 16])], "Squeeze": [np.asarray([], int)],
        "ReduceMean": [np.asarray([2, 3])], "ReduceMax": [np.asarray([2, 3])], "ReduceSum": [np.asarray([2, 3])],
        "ReduceL2": [np.asarray([2, 3])],
        "Pad": [np.asarray([0, 0, 1, 1, 0, 0, 1, 1])], "Resize": [None, None, np.asarray([2, 3, 8, 8])],
    }  # fmt: skip
    op, more = op_of(name), rest.get(name, [])
    attrs = op.complete({}, name)
    y, z = (op.reference(attrs, v, *more)[0] for v in (x, s * x))
    wide = (
        np.broadcast_to(s, x.shape).reshape(2, -1)[:, : y[0].size]
        if y.ndim == 2
        else s.reshape(1, 3, *[1] * (y.ndim - 2))
    )
    assert np.allclose(z, wide * y, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in ONE_TENSOR if op_of(n).nonnegative])
def test_nonnegative_operators_are(name: str) -> None:
    assert _value(name, np.linspace(-20, 20, 401).astype(np.float32)).min() >= 0


@pytest.mark.parametrize("name", [n for n, op in REGISTRY.items() if op.commutative])
def test_commutative_operators_are(name: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
    op = op_of(name)
    assert np.array_equal(op.reference({}, a, b)[0], op.reference({}, b, a)[0])


@pytest.mark.parametrize("name", [n for n in ONE_TENSOR if op_of(n).keeps_order or op_of(n).chooses])
def test_what_stays_on_its_grid_only_takes_elements(name: str) -> None:
    x = np.random.default_rng(4).permutation(96).reshape(2, 3, 4, 4).astype(np.float32)
    op = op_of(name)
    attrs = op.complete({"kernel_shape": [2, 2]} if "kernel_shape" in op.attrs else {}, name)
    assert set(op.reference(attrs, x)[0].reshape(-1)) <= set(x.reshape(-1))
