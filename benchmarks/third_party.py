#!/usr/bin/env python3
"""Other people's quantized models, lowered to integers, beside onnxruntime running the originals.

    python benchmarks/third_party.py [--models a,b] [--samples 16] [--out third_party.md]

The original runs in onnxruntime with graph optimizations off, so that every QuantizeLinear and DequantizeLinear is
computed as it stands, in float32.  QONNX files hold Quant nodes that onnxruntime does not know: they are written out
here in standard operators, apart from our own adapter.  Differences are counted in steps of the output's grid, on the
output itself, on the tensor before a final Softmax or ArgMax, and layer by layer: each layer then gets the original's
integers, so that what it shows is its own rounding and nothing that came from above.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import qir
from qir import passes
from qir.io import audit, to_onnx
from qir.ops import op_of
from qir.runtime import Session
from qir.verify import is_integer_only

HERE = Path(__file__).resolve().parent
KIT = HERE.parents[1] / "shared" / "kit"
HEAVY = {"tflite_deeplabv3_mnv2_dm05_qat_u8_qdq": 2, "tinynn_mobilenetv2_tv_qdq": 8, "tflite_mobilenetv2_qat_u8_qdq": 8}
"""Models that get fewer samples."""

NEAR_TIE = 1e-3
"""Distance from a half, in steps, below which float32 cannot tell which way to round."""

Ties = Callable[[qir.Node, Any, Any], Any]
"""(a qir.Requantize, its input, its output) -> the output by another rule for ties."""


@dataclass
class Steps:
    """How many values differ by how many steps."""

    counts: Counter[int] = field(default_factory=Counter[int])

    def add(self, difference: Any) -> None:
        values, counts = np.unique(np.abs(difference), return_counts=True)
        for v, c in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[int(v)] += c

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def share(self, most: int) -> float:
        """Share of values at most that many steps apart, in per cent."""
        return 100 * sum(c for k, c in self.counts.items() if k <= most) / max(self.total, 1)

    def __str__(self) -> str:
        return ", ".join(f"{k}: {c:,}" for k, c in sorted(self.counts.items()))


@dataclass
class Result:
    name: str
    samples: int
    output: Steps = field(default_factory=Steps)
    scores: Steps = field(default_factory=Steps)
    scores_name: str = ""
    layers: Steps = field(default_factory=Steps)
    rounded: int = 0
    near_ties: int = 0
    exact_ties: int = 0
    even: Steps = field(default_factory=Steps)
    tied: Steps = field(default_factory=Steps)
    fused: Steps = field(default_factory=Steps)
    themselves: Steps = field(default_factory=Steps)
    elsewhere: Counter[str] = field(default_factory=Counter[str])
    offences: list[str] = field(default_factory=list[str])
    same_top: list[bool] = field(default_factory=list[bool])


def kit_module() -> Any:
    spec = importlib.util.spec_from_file_location("evaluate", KIT / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quant nodes (QONNX) as Div, Add, Clip, round, Sub, Mul.

    Rounds half to even by adding and subtracting 1.5 * 2^23, which float32 arithmetic of any opset can do.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    nodes: list[onnx.NodeProto] = []
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(12582912, np.float32), "round.magic"))
    for node in model.graph.node:
        if node.op_type != "Quant":
            nodes.append(node)
            continue
        x, scale, zero, bits = node.input
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attrs.get("rounding_mode", b"ROUND") == b"ROUND"
        width, signed, narrow = int(constants[bits]), attrs["signed"], attrs["narrow"]
        hi = 2.0 ** (width - 1) - 1 if signed else 2.0**width - 1 - narrow
        lo = -(2.0 ** (width - 1)) + narrow if signed else 0.0
        names = [f"{node.output[0]}.{part}" for part in ("div", "add", "clip", "up", "round", "sub")]
        version = next(o.version for o in model.opset_import if not o.domain)
        ends = [numpy_helper.from_array(np.float32(v), f"{names[2]}.{k}") for k, v in (("lo", lo), ("hi", hi))]
        clip = helper.make_node("Clip", [names[1]], [names[2]], min=lo, max=hi)
        if version >= 11:
            model.graph.initializer.extend(ends)
            clip = helper.make_node("Clip", [names[1], ends[0].name, ends[1].name], [names[2]])
        nodes += [
            helper.make_node("Div", [x, scale], [names[0]]),
            helper.make_node("Add", [names[0], zero], [names[1]]),
            clip,
            helper.make_node("Add", [names[2], "round.magic"], [names[3]]),
            helper.make_node("Sub", [names[3], "round.magic"], [names[4]]),
            helper.make_node("Sub", [names[4], zero], [names[5]]),
            helper.make_node("Mul", [names[5], scale], [node.output[0]]),
        ]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def fused_kernels(path: Path) -> Any:
    """onnxruntime with its integer kernels in the place of DequantizeLinear, operator, QuantizeLinear.

    int8 by int8 stays so, uint8 by int8 becomes uint8 by uint8: products of mixed signs, onnxruntime's choice on x86,
    saturate where there is no VNNI.
    """
    model = onnx.load(path)
    _repair(model)
    if any(n.op_type == "Quant" for n in model.graph.node):
        model = written_out(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    zeros = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2}
    signed = any(t.name in zeros and t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)
    options.add_session_config_entry("session.qdqisint8allowed" if signed else "session.x64quantprecision", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def original(path: Path) -> tuple[Any, dict[str, str]]:
    """(onnxruntime session of the original, float tensor -> its QuantizeLinear's output), intermediates as outputs."""
    model = onnx.load(path)
    quantized = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    _repair(model)
    constants = {t.name for t in model.graph.initializer}
    quants = [n for n in model.graph.node if n.op_type == "Quant"]
    if quants:
        # the integers of a Quant node, under the name that our adapter gives them
        quantized = {f"{n.name}.clip": f"{n.output[0]}.round" for n in quants if n.input[0] not in constants}
        model = written_out(model)
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in quantized.values() if n not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), quantized


def _repair(model: onnx.ModelProto) -> None:
    """DequantizeLinear of a vector along its axis 3 (a bias, per tensor), which onnxruntime refuses: along axis 0."""
    ranks = {t.name: len(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "DequantizeLinear" and attribute.name == "axis":
                attribute.i = min(attribute.i, max(ranks.get(node.input[0], attribute.i + 1) - 1, 0))


def compare(name: str, samples: int) -> Result:
    """Everything the report says about one model."""
    path = KIT / "quantized" / f"{name}.onnx"
    integer, _ = passes.LowerToDyadic().apply(qir.load(path))
    result = Result(name, samples, offences=[*is_integer_only(integer), *audit(to_onnx(integer))])
    session, quantized = original(path)
    fused = fused_kernels(path)
    x = kit_module().load(name, "dev", samples)[0]
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else 2
    end = integer.outputs[0]
    before = scores_of(integer)
    result.scores_name = before.name if before is not None else ""
    ours = Session(integer, "reference")
    for start in range(0, len(x) - size + 1, size):
        part = np.ascontiguousarray(x[start : start + size])
        fetch = [session.get_outputs()[0].name, *quantized.values()]
        got = dict(zip(fetch, session.run(fetch, {session.get_inputs()[0].name: part}), strict=True))
        ints = {v: got[q].astype(integer.value(v).dtype.numpy) for v, q in quantized.items() if v in integer}
        want = got[fetch[0]]
        mine = ours.run({integer.inputs[0].name: part}, outputs=[end.name, *([before.name] if before else [])])
        step = 1.0 if not end.dtype.is_float else end.producer.input(0).quant.scale[0]  # type: ignore[union-attr]
        result.output.add(np.rint((mine[end.name].astype(np.float64) - want) / step))
        if end.dtype.is_float and want.ndim == 2:
            result.same_top += (mine[end.name].argmax(1) == want.argmax(1)).tolist()
        if before is not None and before.name in ints:
            result.scores.add(mine[before.name].astype(np.int64) - ints[before.name].astype(np.int64))
        layer_by_layer(integer, part, ints, result)
        other = fused.run(None, {fused.get_inputs()[0].name: part})[0]
        result.fused.add(np.rint((mine[end.name].astype(np.float64) - other) / step))
        result.themselves.add(np.rint((want.astype(np.float64) - other) / step))
        tied, even = with_ties(integer, part, their_ties(ints)), with_ties(integer, part, even_ties)
        result.tied.add(np.rint((tied.astype(np.float64) - want) / step))
        result.even.add(np.rint((even.astype(np.float64) - want) / step))
    return result


def scores_of(graph: qir.Graph) -> Any:
    """What a final Softmax or ArgMax reads; None where there is none."""
    node = graph.outputs[0].producer
    while node is not None and node.op in ("DequantizeLinear", "Reshape", "Flatten", "Identity"):
        node = node.input(0).producer
    return node.input(0) if node is not None and node.op in ("qir.Softmax", "ArgMax") else None


def layer_by_layer(graph: qir.Graph, x: Any, ints: dict[str, Any], result: Result) -> None:
    """Run the integer graph with each tensor replaced by the original's once it has been compared with it."""
    live: dict[Any, Any] = {graph.inputs[0]: x}
    for node in graph.nodes:
        args = [None if v is None else v.data if v.data is not None else live[v] for v in node.inputs]
        for value, array in zip(node.outputs, op_of(node.op).reference(node.attrs, *args), strict=False):
            live[value] = array
            theirs = ints.get(value.name)
            if theirs is None or theirs.shape != array.shape or theirs.dtype != array.dtype:
                continue
            difference = array.astype(np.int64) - theirs.astype(np.int64)
            result.layers.add(difference)
            wrong = difference != 0
            if wrong.any():
                if node.op == "qir.Requantize":
                    distance = distance_to_tie(node, args[0])[wrong]
                    result.rounded += distance.size
                    result.near_ties += int((distance < NEAR_TIE).sum())
                    result.exact_ties += int(exact_ties(node, args[0])[wrong].sum())
                else:
                    result.elsewhere[node.op] += int(wrong.sum())
            live[value] = theirs


def scaled(node: qir.Node, x: Any) -> tuple[Any, Any]:
    """(product, shift) of a qir.Requantize: what it rounds is product / 2^shift."""
    product = (x.astype(np.int64) - node.attrs["x_zero_point"]) * node.input(1).array().astype(np.int64)
    return product, node.input(2).array().astype(np.int64)


def distance_to_tie(node: qir.Node, x: Any) -> Any:
    """How far from a half each exact result of a qir.Requantize is, in steps (with its multipliers' 31 bits)."""
    product, shift = scaled(node, x)
    real = np.ldexp(product.astype(np.float64), -shift)
    return np.abs(real - np.floor(real) - 0.5)


def exact_ties(node: qir.Node, x: Any) -> Any:
    """Where a qir.Requantize rounds k + 1/2 exactly."""
    product, shift = scaled(node, x)
    return product & ((np.int64(1) << shift) - 1) == np.int64(1) << (shift - 1)


def their_ties(ints: dict[str, Any]) -> Ties:
    """Near ties as the original rounds them."""

    def choose(node: qir.Node, x: Any, array: Any) -> Any:
        theirs = ints.get(node.output.name)
        if theirs is None or theirs.shape != array.shape:
            return array
        return np.where(distance_to_tie(node, x) < NEAR_TIE, theirs, array)

    return choose


def even_ties(node: qir.Node, x: Any, array: Any) -> Any:
    """Exact ties half to even, which is QuantizeLinear's rule, everything else as it is."""
    product, shift = scaled(node, x)
    k = product >> shift
    even = np.clip(k + (k & 1) + node.attrs["zero_point"], node.attrs["lo"], node.attrs["hi"])
    return np.where(exact_ties(node, x), even, array).astype(array.dtype)


def with_ties(graph: qir.Graph, x: Any, ties: Ties) -> Any:
    """The first output of the integer network, were the ties of its rescalings rounded by another rule."""
    live: dict[Any, Any] = {graph.inputs[0]: x}
    for node in graph.nodes:
        args = [None if v is None else v.data if v.data is not None else live[v] for v in node.inputs]
        for value, array in zip(node.outputs, op_of(node.op).reference(node.attrs, *args), strict=False):
            live[value] = ties(node, args[0], array) if node.op == "qir.Requantize" else array
    return live[graph.outputs[0]]


def report(results: list[Result]) -> str:
    lines = [
        "# Other people's quantized models", "",
        (
            "`python benchmarks/third_party.py`: each model is loaded, lowered to integers and run by the reference "
            "(whose "
            "bits onnxruntime gives too, see tests/runtime/test_third_party.py); the original is run by onnxruntime "
            f"{ort.__version__} with graph optimizations off (ORT_DISABLE_ALL), which is the meaning its "
            f"QuantizeLinear and "
            "DequantizeLinear nodes have in the standard, in float32. A step is one unit of the output's integer grid; "
            "counts are `steps apart: values`."
        ), "",
        "| model | samples | outputs within one step % | output, steps apart | beside onnxruntime's default kernels: "
        "within one step % | onnxruntime beside itself: within one step % | exact ties half to even: within one step % "
        "| near ties as theirs: within one step % | same top-1 | offences |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for r in results:
        top = f"{sum(r.same_top)}/{len(r.same_top)}" if r.same_top else ""
        itself = f"{r.themselves.share(1):.3f}" if r.themselves.total else ""
        lines.append(
            f"| {r.name} | {r.samples} | {r.output.share(1):.3f} | {r.output} | {r.fused.share(1):.3f} | {itself} | "
            f"{r.even.share(1):.3f} | {r.tied.share(1):.3f} | {top} | {len(r.offences)} |"
        )
    lines += [
        "",
        (
            '"Beside onnxruntime\'s default kernels": our output against the same file with all graph optimizations '
            "(ORT_ENABLE_ALL; session.qdqisint8allowed=1 for int8 activations, session.x64quantprecision=1 for uint8 "
            "ones), which put integer kernels "
            "such as QLinearConv in the place of the float simulation. "
            '"Onnxruntime beside itself": that run against the run without: how far apart two executions of the '
            "original lie. "
            '"Exact ties half to even": the same integer network, but where the value to round is exactly k + 1/2 '
            "it goes to the even side, as QuantizeLinear says, instead of up. "
            '"Near ties as theirs": the same integer network, but where the exact value of a rescaling lies within '
            f"{NEAR_TIE:g} of a step of a half, it is rounded as the original rounded it."
        ),
    ]
    lines += [
        "", "The tensor before a final Softmax or ArgMax, whole network:", "",
        "| model | tensor | equal % | within one step % | steps apart |", "| --- | --- | ---: | ---: | --- |",
    ]  # fmt: skip
    for r in results:
        if r.scores.total:
            lines.append(
                f"| {r.name} | {r.scores_name} | {r.scores.share(0):.3f} | {r.scores.share(1):.3f} | {r.scores} |"
            )
    lines += [
        "", "Layer by layer, each layer fed the original's integers:", "",
        "| model | values | equal % | steps apart | differing in a rescaling "
        "| of these near a tie | of these exact ties | differing elsewhere |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for r in results:
        if r.layers.total:
            other = ", ".join(f"{k} {v:,}" for k, v in r.elsewhere.items())
            lines.append(
                f"| {r.name} | {r.layers.total:,} | {r.layers.share(0):.5f} | {r.layers} | {r.rounded:,} | "
                f"{r.near_ties:,} | {r.exact_ties:,} | {other} |"
            )
    lines += [
        "",
        (
            "What explains the rest. The originals round half to even (QuantizeLinear) a float32 value that carries "
            "the "
            "rounding errors of a float32 sum; we round half up (TOSA RESCALE, SINGLE_ROUND) the exact integer sum "
            "times a "
            f"31-bit multiplier. The two disagree only where the exact value lies next to a half: \"near a tie\" "
            f"counts those "
            f"within {NEAR_TIE:g} of a step of it. A difference of one step then travels through the layers below, "
            "which is all that the whole-network columns add to the layer-by-layer ones. In qir.Add, qir.SumPool's "
            "rescaling "
            "and qir.Mul the same holds; a biased accumulator differs where the original keeps its bias in float "
            "(we round it to the accumulator's grid); qir.Softmax is an integer algorithm at most one step from the "
            "rounded float softmax; bilinear Resize uses weights of 11 bits. "
            "DeepLab's output is a class (ArgMax), not a grid: only equal values count there."
        ), "",
        (
            "Which of the two it is. The column of exact ties counts the differing values that were exactly k + 1/2 "
            "for us: there the two rounding conventions disagree, and nothing else does. The rest of the near ties"
            "float32 noise of the original (its products and sums have 24 bits, ours 31 and more), which no rule for "
            "ties can follow; in kwsmlp_w3a3 it is the bias, which the original adds in float and we round to the "
            "accumulator's grid (at most half a unit of it, under 0.001 of an output step). Taking exact ties half to "
            "even brings mlperf_resnet8_int8_qdq, whose differences are nearly all exact ties, as near to the original "
            "as onnxruntime's two ways of running it are to each other, and moves the others little or not at all. qir "
            "rounds half up everywhere; that column is a counterfactual. A model in which one step early on spreads to "
            "most outputs (tinynn_mobilenetv2_tv_qdq) agrees with itself under onnxruntime's own optimizations on a "
            "little over half of them. The models below 99 % stay below it beside either execution of the original."
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(sorted(p.stem for p in (KIT / "quantized").glob("*.onnx"))))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "third_party.md")
    args = parser.parse_args()
    results: list[Result] = []
    for name in args.models.split(","):
        one = compare(name, min(args.samples, HEAVY.get(name, args.samples)))
        print(
            f"{name}: {one.output.share(1):.3f} % within one step, scores {one.scores.share(1):.3f} %, "
            f"layers {one.layers.share(0):.5f} % equal, ties {one.near_ties}/{one.rounded}, {dict(one.elsewhere)}, "
            f"{one.offences}", flush=True,
        )  # fmt: skip
        results.append(one)
    args.out.write_text(report(results))


if __name__ == "__main__":
    main()
