"""Operators that stand for several: what is loaded computes what onnxruntime computes of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper as oh

import qir
from qir.errors import UnsupportedError
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness

RNG = np.random.default_rng(11)


def real(*shape: int, scale: float = 1.0) -> Any:
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def model(op: str, feeds: dict[str, Any], constants: list[Any], attrs: dict[str, Any], **options: Any) -> Any:
    """One node: the feeds first, then the constants (None: absent); its output is `y`."""
    domain, opset = options.get("domain", ""), options.get("opset", 21)
    kind = oh.np_dtype_to_tensor_dtype
    inputs = [
        oh.make_tensor_value_info(k, kind(v.dtype), ["N", *v.shape[1:]] if options.get("batch") else v.shape)
        for k, v in feeds.items()
    ]
    names = [*feeds, *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    node = oh.make_node(op, names, ["y"], name="node", domain=domain, **attrs)
    out = [onnx.ValueInfoProto(name="y")]
    stored = [onnx.numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None]
    graph = oh.make_graph([node], "g", inputs, out, stored)
    domains = [oh.make_opsetid("", opset)] + [oh.make_opsetid(domain, 1)] * bool(domain)
    return oh.make_model(graph, opset_imports=domains, ir_version=10)


def check(op: str, feeds: dict[str, Any], constants: list[Any], attrs: dict[str, Any], **options: Any) -> qir.Graph:
    """Loads the node and compares the float graph, before and after Simplify, with onnxruntime on the file."""
    proto = model(op, feeds, constants, attrs, **options)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    want = session.run(None, feeds)
    graph = qir.load(proto)
    simple, _ = qir.passes.Simplify().apply(graph)
    for g in (graph, simple):
        got = Session(g, "reference").run(feeds)
        for value, w in zip(g.outputs, want, strict=True):
            w = np.asarray(w)
            assert got[value.name].dtype == w.dtype and got[value.name].shape == w.shape
            np.testing.assert_allclose(got[value.name], w, rtol=2e-5, atol=2e-5)
    return graph


EQUATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
    "bhid,bhjd->bhij": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "bhij,bjhd->bihd": ((2, 3, 4, 6), (2, 6, 3, 5)),
    "nqd,nkd->nqk": ((2, 3, 4), (2, 5, 4)),
    "bsd,dhe->bshe": ((2, 3, 4), (4, 2, 5)),
    "bshe,hed->bsd": ((2, 3, 2, 5), (2, 5, 4)),
    "bhwc,hkc->bhwk": ((2, 3, 4, 5), (3, 6, 5)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 5)),
    "...i,ij->...j": ((2, 3, 4), (4, 5)),
    "bi,bj->bij": ((2, 3), (2, 4)),
    "bi,bi->b": ((2, 3), (2, 3)),
    "bij,bij->bij": ((2, 3, 4), (2, 3, 4)),
    "bij->bji": ((2, 3, 4),),
    "bij->b": ((2, 3, 4),),
    "ij,jk": ((3, 4), (4, 5)),
    "bij,bjk,bkl->bil": ((2, 3, 4), (2, 4, 5), (2, 5, 3)),
    "b i j, b k j -> b i k": ((2, 3, 4), (2, 5, 4)),
    "bi,jk->bk": ((2, 3), (4, 5)),
    "bnd,md->bnm": ((2, 3, 4), (5, 4)),
    "bxyc,byzc->bxzyc": ((2, 3, 4, 2), (2, 4, 5, 2)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("batch", [False, True])
def test_einsum(equation: str, batch: bool) -> None:
    shapes = EQUATIONS[equation]
    constant = batch and equation in ("bsd,dhe->bshe", "bshe,hed->bsd", "bhwc,hkc->bhwk", "...i,ij->...j",
                                      "bi,jk->bk", "bnd,md->bnm")  # fmt: skip
    arrays = [real(*s) for s in shapes]
    split = 1 if constant else len(arrays)
    feeds = {f"x{i}": a for i, a in enumerate(arrays[:split])}
    batch = batch and equation[0] in "bn." and equation != "ij,jk"
    check("Einsum", feeds, arrays[split:], {"equation": equation}, batch=batch)


def test_a_diagonal_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="diagonal"):
        qir.load(model("Einsum", {"x": real(3, 3)}, [], {"equation": "ii->i"}))


@pytest.mark.parametrize(
    "attrs",
    [{}, {"transA": 1, "alpha": 0.5}, {"transB": 1}, {"transA": 1, "transB": 1, "alpha": 2.0}],
    ids=str,
)
def test_fused_matmul(attrs: dict[str, Any]) -> None:
    a = real(2, 4, 3) if attrs.get("transA") else real(2, 3, 4)
    b = real(5, 4) if attrs.get("transB") else real(4, 5)
    check("FusedMatMul", {"x": a}, [b], attrs, domain="com.microsoft")


FUSED: dict[str, tuple[str, dict[str, Any], list[Any], dict[str, Any]]] = {
    "BiasGelu": ("BiasGelu", {"x": real(2, 5)}, [real(5)], {}),
    "FastGelu": ("FastGelu", {"x": real(2, 5)}, [real(5)], {}),
    "FastGelu alone": ("FastGelu", {"x": real(2, 5)}, [], {}),
    "Gelu": ("Gelu", {"x": real(2, 5)}, [], {}),
    "QuickGelu": ("QuickGelu", {"x": real(2, 5)}, [], {"alpha": 1.3}),
    "FusedConv": (
        "FusedConv", {"x": real(1, 3, 5, 5)}, [real(4, 3, 3, 3), real(4)], {"activation": "Relu", "pads": [1] * 4},
    ),
    "FusedConv, leaky": (
        "FusedConv", {"x": real(1, 3, 5, 5)}, [real(4, 3, 3, 3), real(4)],
        {"activation": "LeakyRelu", "activation_params": [0.2]},
    ),
    "FusedConv, clipped": (
        "FusedConv", {"x": real(1, 3, 5, 5)}, [real(4, 3, 3, 3), real(4)],
        {"activation": "Clip", "activation_params": [0.0, 6.0]},
    ),
    "FusedConv, added": (
        "FusedConv", {"x": real(1, 3, 5, 5)}, [real(4, 3, 3, 3), real(4), real(1, 4, 3, 3)], {"activation": "Relu"},
    ),
    "FusedGemm": ("FusedGemm", {"x": real(2, 4)}, [real(4, 3), real(3)], {"activation": "Relu"}),
    "FusedGemm, leaky": (
        "FusedGemm", {"x": real(2, 4)}, [real(3, 4), real(3)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_what_onnxruntime_fuses(name: str) -> None:
    op, feeds, constants, attrs = FUSED[name]
    check(op, feeds, constants, attrs, domain="com.microsoft")


def test_scaler() -> None:
    check("Scaler", {"x": real(4, 3)}, [], {"offset": [1.0, 2.0, 3.0], "scale": [0.5, 2.0, 1.0]}, domain="ai.onnx.ml")


KEEP = RNG.random((2, 1, 3, 6)) > 0.3
ATTENTIONS: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any]]] = {
    "heads": ({"q": real(2, 3, 4, 8), "k": real(2, 3, 6, 8), "v": real(2, 3, 6, 8)}, [], {}),
    "flat": (
        {"q": real(2, 4, 24), "k": real(2, 6, 24), "v": real(2, 6, 24)}, [], {"q_num_heads": 3, "kv_num_heads": 3},
    ),
    "causal": (
        {"q": real(2, 4, 24), "k": real(2, 4, 24), "v": real(2, 4, 24)}, [],
        {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1, "scale": 0.2},
    ),
    "groups": (
        {"q": real(2, 4, 32), "k": real(2, 6, 16), "v": real(2, 6, 16)}, [], {"q_num_heads": 4, "kv_num_heads": 2},
    ),
    "mask": ({"q": real(2, 2, 3, 4), "k": real(2, 2, 6, 4), "v": real(2, 2, 6, 4)}, [KEEP], {}),
    "added": ({"q": real(2, 2, 3, 4), "k": real(2, 2, 6, 4), "v": real(2, 2, 6, 4)}, [real(3, 6)], {"softcap": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    feeds, constants, attrs = ATTENTIONS[name]
    check("Attention", feeds, constants, attrs, opset=23)


MASKS = {
    "none": None,
    "lengths": np.asarray([3, 5], np.int32),
    "keys": np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attrs", [{}, {"unidirectional": 1}, {"scale": 0.3}], ids=str)
def test_packed_attention(mask: str, attrs: dict[str, Any]) -> None:
    constants = [real(8, 24, scale=0.3), real(24, scale=0.1), MASKS[mask]]
    check("Attention", {"x": real(2, 5, 8)}, constants, {"num_heads": 2, **attrs}, domain="com.microsoft")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", ["none", "keys"])
def test_multi_head_attention(bias: bool, mask: str) -> None:
    feeds = {"q": real(2, 4, 8), "k": real(2, 5, 8), "v": real(2, 5, 8)}
    constants = [real(24) if bias else None, MASKS[mask]]
    check("MultiHeadAttention", feeds, constants, {"num_heads": 2}, domain="com.microsoft")


ANGLE = np.outer(np.arange(16), 1 / 100 ** (np.arange(4) / 4)).astype(np.float32)
COS, SIN = np.cos(ANGLE), np.sin(ANGLE)
PLACES = np.asarray([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])


@pytest.mark.parametrize("attrs", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 8}], ids=str)
def test_rotary_embedding(attrs: dict[str, Any]) -> None:
    x = real(2, 3, 5, 12 if "rotary_embedding_dim" in attrs else 8)
    check("RotaryEmbedding", {"x": x}, [COS, SIN, PLACES], attrs, opset=23)


@pytest.mark.parametrize("attrs", [{}, {"interleaved": 1}], ids=str)
@pytest.mark.parametrize("places", [PLACES, np.asarray([2])], ids=["each", "first"])
def test_rotary_embedding_of_onnxruntime(attrs: dict[str, Any], places: Any) -> None:
    check("RotaryEmbedding", {"x": real(2, 5, 24)}, [places, COS, SIN], attrs, domain="com.microsoft")


INDEXING: dict[str, tuple[str, dict[str, Any], list[Any], dict[str, Any]]] = {
    "Trilu": ("Trilu", {"x": real(2, 3, 5)}, [], {}),
    "Trilu, lower, moved": ("Trilu", {"x": real(2, 3, 5)}, [np.asarray(-1)], {"upper": 0}),
    "Trilu of integers": ("Trilu", {"x": np.arange(18).reshape(2, 3, 3)}, [np.asarray(1)], {"upper": 0}),
    "Trilu of booleans": ("Trilu", {"x": np.ones((3, 3), bool)}, [np.asarray(1)], {}),
    "CumSum": ("CumSum", {"x": real(2, 5, 3)}, [np.asarray(1)], {}),
    "CumSum, last axis": ("CumSum", {"x": real(2, 5)}, [np.asarray(-1)], {"exclusive": 1}),
    "CumSum, back": ("CumSum", {"x": real(2, 5)}, [np.asarray(1)], {"exclusive": 1, "reverse": 1}),
    "CumSum of integers": ("CumSum", {"x": np.arange(30).reshape(2, 5, 3)}, [np.asarray(1)], {"reverse": 1}),
    "GatherND": ("GatherND", {"x": real(3, 4, 5)}, [np.asarray([[0, 1], [2, -1], [-3, 3]])], {}),
    "GatherND, all": ("GatherND", {"x": real(3, 4, 5)}, [np.asarray([[[0, 1, 4]], [[2, 3, -5]]])], {}),
    "GatherND, one": ("GatherND", {"x": real(3, 4, 5)}, [np.asarray([[2], [0]])], {}),
    "OneHot": ("OneHot", {"i": np.asarray([[0, 2], [-1, 5]])}, [np.asarray(4), real(2)], {}),
    "OneHot, first axis": ("OneHot", {"i": np.asarray([0, 2, 1])}, [np.asarray(4), np.asarray([0, 1])], {"axis": 0}),
    "ScatterND": ("ScatterND", {"x": real(4, 3, 2)}, [np.asarray([[1, 2], [3, 0]]), real(2, 2)], {}),
    "ScatterND, rows": ("ScatterND", {"x": real(4, 3)}, [np.asarray([[3], [1]]), real(2, 3)], {}),
    "ScatterElements": (
        "ScatterElements", {"x": real(3, 4)}, [np.asarray([[1, 3], [0, -1]]), real(2, 2)], {"axis": 1},
    ),
    "GatherElements": ("GatherElements", {"x": real(3, 4)}, [np.asarray([[1, 3], [0, -1], [2, 2]])], {"axis": 1}),
    "Mod": ("Mod", {"x": np.arange(-9, 9).reshape(3, 6)}, [np.asarray([4, -4, 3, -3, 1, 7])], {}),
    "Mod, as in C": ("Mod", {"x": np.arange(-9, 9).reshape(3, 6)}, [np.asarray([4, -4, 3, -3, 1, 7])], {"fmod": 1}),
    "Xor": ("Xor", {"x": np.asarray([True, False, True])}, [np.asarray([True, True, False])], {}),
    "ReduceSumSquare": ("ReduceSumSquare", {"x": real(3, 4)}, [np.asarray([1])], {"keepdims": 0}),
    "ReduceL1": ("ReduceL1", {"x": real(3, 4)}, [np.asarray([-1])], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name: str) -> None:
    check(*INDEXING[name])


@pytest.mark.parametrize(
    "name", ["Trilu", "CumSum", "GatherND", "ScatterND, rows", "ScatterElements", "GatherElements"]
)
def test_indexing_on_integers(name: str) -> None:
    op, feeds, constants, attrs = INDEXING[name]
    proto = model(op, feeds, constants, attrs)
    integer, _ = qir.quantize(qir.load(proto), feeds)
    result = exactness(integer, feeds)
    assert result.exact, result.differing


WHOLE = [n for n in INDEXING if all(v.dtype.kind in "ib" for v in INDEXING[n][1].values()) and n != "OneHot"]


FED = {"x": np.arange(60).reshape(3, 4, 5), "i": np.asarray([[0, 1], [2, -1], [-3, 3]])}
ROWS = {"x": np.arange(12).reshape(3, 4), "i": np.asarray([[[2]], [[0]], [[1]]])}
FED_INDICES: dict[str, Any] = {"fed indices": ("GatherND", FED, [], {}), "fed rows": ("GatherND", ROWS, [], {})}


@pytest.fixture(scope="module")
def device() -> Any:
    """One emulated GPU, which compiles a kernel once."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    return EmulatedDevice()


@pytest.mark.parametrize("name", [*WHOLE, *FED_INDICES])
def test_integers_are_computed_as_they_are(name: str, device: Any) -> None:
    """On every executor, indices that are fed too."""
    op, feeds, constants, attrs = {**INDEXING, **FED_INDICES}[name]
    integer, _ = qir.quantize(check(op, feeds, constants, attrs), feeds)
    want = Session(integer, "reference").run(feeds)
    others = [Session(integer, "onnxruntime"), Session(integer, "cpu")]
    if "Mod" in name or name == "fed indices":
        others.append(Session(integer, "cuda", device=device))
    for other in others:
        for key, got in other.run(feeds).items():
            np.testing.assert_array_equal(got, want[key], err_msg=other.backend)
