"""Every operator is whole: documented, typed, executable, with a way to integers and, for our own, an ONNX form."""

from __future__ import annotations

import inspect

import pytest

from qir.ops import REGISTRY, Op, op_of


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
