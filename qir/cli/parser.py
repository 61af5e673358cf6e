"""The commands, their options and the help that teaches them.  Imports nothing heavy: --help must be instant."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from qir import __version__

RECIPES = ("w8a8", "w8a8_per_tensor", "w8a16", "w4a8", "w4a4", "data_free")
METHODS = ("minmax", "ema", "percentile", "mse", "kl", "cross_entropy", "bn", "std")
BACKENDS = ("reference", "onnxruntime", "cpu", "cuda")

TOP = """\
qir turns a trained float ONNX network into one that computes with integers only,
and shows that every executor gives the same bits.

commands, in the order in which you will want them:
  demo      the whole way on a small network that comes with qir (start here)
  quantize  float ONNX -> integer-only ONNX
  run       execute a model on data
  compare   float against integer, layer by layer, worst first
  inspect   what is in a model: operators, dtypes, scales, sizes, MACs, BOPS
  bench     how fast a model runs, against other backends, layer by layer
  diagnose  why a quantized network is worse than the float one, and what to do
  recipe    print a recipe as TOML
  search    4 or 8 bits for each layer, under limits on size, operations or time

`qir COMMAND --help` shows examples.  Exit codes: 0 done, 1 an error said in one line,
2 wrong usage, 130 interrupted.
"""

QUANTIZE = """\
examples:
  qir quantize net.onnx -o net.int8.onnx --data calib.npy
      calib.npy: samples along the first axis, exactly as the network takes them

  qir quantize net.onnx -o net.int8.onnx --data photos/ --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375
      a folder of images: each is resized, cropped, (pixel - mean) / std

  qir quantize net.onnx -o net.int8.onnx --data photos/ --mean 127 --std 128 --fold-normalization
      the result takes uint8 pixels: the normalization is inside its first layer

  qir quantize net.onnx -o net.int4.onnx --data calib.npz --recipe w4a8 --range mse
  qir quantize net.onnx -o net.int8.onnx --recipe data_free
      no data at all: ranges come from the BatchNorm statistics

100 to 300 samples are enough; more than one input: an .npz with an array for each input name.
"""

RUN = """\
examples:
  qir run net.int8.onnx --data test.npy -o out.npz
  qir run net.int8.onnx --data photos/ --mean 127 --std 128 --backend cpu
"""

COMPARE = """\
examples:
  qir compare net.onnx net.int8.onnx --data test.npy
  qir compare net.onnx net.int8.onnx --data test.npy --worst 10 --backend reference

SQNR is 10 log10(signal / noise) in dB: +6 dB is one bit more.  Tensors are matched by name.  Equalization and bias
absorption change what an inner tensor stands for, channel by channel; such tensors are marked ~ and ranked by
the SQNR after the best affine map of each channel.
"""

INSPECT = """\
examples:
  qir inspect net.onnx
  qir inspect net.int8.onnx --layers

MACs and BOPS (MACs times weight bits times activation bits) are for one sample.
"""

BENCH = """\
examples:
  qir bench net.int8.onnx
  qir bench net.int8.onnx --batch 8 --against onnxruntime
  qir bench net.int8.onnx --profile --json profile.json
  qir bench net.int8.onnx --latency-table table.json

Backends take turns on the same random input, so a busy machine slows all of them alike; medians are shown.
"""

SEARCH = """\
examples:
  qir search net.onnx --data calib.npy --size 0.75x -o net.mixed.onnx
  qir search net.onnx --data calib.npy --bops 0.6x --size 2MB -o mixed.toml --plot layers.png --pareto curve.png
  qir search net.onnx --data calib.npy --latency table.json --latency-limit 3ms -o net.mixed.onnx
  qir search net.onnx --data calib.npy --size 0.75x --pin conv1=8/8 --forbid fc=4/4 --residual-groups -o mixed.toml
  qir search net.onnx --data calib.npy --latency cpu --latency-limit 0.9x --save-latency table.json -o mixed.toml

A limit is a number, with a unit if you like, or a share of what all layers at 8 bits cost ("0.75x").  A latency
table is {layer: {"4/8": seconds, "8/8": seconds}}; `qir bench net.int8.onnx --latency-table table.json` times one,
and --latency cpu does so on the way.  A recipe .toml can be edited and given to `qir quantize`.
"""

DIAGNOSE = """\
examples:
  qir diagnose net.onnx --data calib.npy
  qir diagnose net.onnx --data calib.npy --recipe w4a8 --worst 5
  qir diagnose net.onnx --data calib.npy --recipe w8a8_per_tensor --remedies

Float check, weights or activations, each quantizer by itself, remedies; 32 samples are enough.
"""

RECIPE = """\
examples:
  qir recipe w4a8
  qir recipe w8a8 > mixed.toml

All options with their values; what is left out of a file has the value of its base.
"""

DEMO = """\
Takes a network trained on handwritten digits (comes with qir), quantizes it with 256 images, runs it with the
reference executor and with onnxruntime on 454 others, and shows accuracy, size, and that both give the same bits.

examples:
  qir demo
  qir demo --network digits_mobile -o digits.int8.onnx
  qir demo --recipe w4a8
"""


def pair(text: str) -> tuple[int, int]:
    """ "224" or "240x320" -> (height, width)."""
    parts = [int(p) for p in text.lower().split("x")]
    if len(parts) > 2 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give 224 or 240x320 (height x width)")
    return parts[0], parts[-1]


def numbers(text: str) -> tuple[float, ...]:
    """ "127" or "104,117,123"."""
    return tuple(float(p) for p in text.split(","))


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction in (0, 1]")
    return value


def output(text: str) -> Path:
    """A path; "-" is the standard output."""
    return Path("/dev/stdout" if text == "-" else text)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def input_shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    """ "NAME:1x3x224x224", the batch also as N, a size that stays open as ?."""
    name, colon, sizes = text.rpartition(":")
    parts = sizes.split("x")
    if not colon or not name or not all(p.isdigit() or p in ("N", "?") for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME:1x3x224x224 (N for a free batch, ? for a free size)")
    return name, tuple(int(p) if p.isdigit() else -1 if p == "?" else p for p in parts)


def _data_options(parser: argparse.ArgumentParser, what: str, required: bool = True, size: str = "--size") -> None:
    group = parser.add_argument_group("data")
    kinds = (
        ".npy (one input, samples first), .npz (an array for each input), a folder of these (samples of many lengths), "
        "images (a folder, or a .txt of files)"
    )
    group.add_argument("--data", metavar="PATH", required=required, type=Path, help=f"{what}: {kinds}")
    group.add_argument("--samples", type=positive, metavar="N", help="use the first N samples (default: all)")
    group.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="samples at a time (default: %(default)s)"
    )
    images = parser.add_argument_group("image folders", "ignored for .npy and .npz; pixel values are 0 to 255")
    images.add_argument(
        size, dest="size", type=pair, metavar="HxW", help="image size (default: the model's input size)"
    )
    images.add_argument(
        "--crop",
        type=fraction,
        metavar="F",
        help="central part that is kept: resize to size/F, crop to size (default: 0.875)",
    )
    images.add_argument(
        "--mean",
        type=numbers,
        metavar="A[,B,C]",
        help="subtracted, per channel (default: what the model's metadata say)",
    )
    images.add_argument(
        "--std",
        type=numbers,
        metavar="A[,B,C]",
        help="divided by, per channel (default: what the model's metadata say)",
    )
    images.add_argument("--layout", choices=("NCHW", "NHWC"), help="axis order (default: from the model's input)")
    images.add_argument("--skip-broken", action="store_true", help="leave broken images out, and name them")
    images.add_argument("--bgr", action="store_true", help="channels in the order blue, green, red")


def _shape_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-shape",
        type=input_shape,
        action="append",
        default=[],
        metavar="NAME:1x3x224x224",
        help="fix an input's open sizes; N leaves the batch free, ? a size; may be repeated",
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _lazy(module: str) -> Callable[[argparse.Namespace], int]:
    """The `main` of a command's module ("module:name": another function), imported when it is called."""
    place, _, name = module.partition(":")
    return lambda args: getattr(import_module(f"qir.cli.{place}"), name or "main")(args)


def _command(commands: Any, name: str, module: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # SUPPRESS: the sub-command's default must not overwrite what stood before the command
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say what each pass did"
    )
    parser.add_argument(
        "--memory-limit", metavar="4GB", default=argparse.SUPPRESS, help="refuse what needs more (QIR_MEMORY_LIMIT)"
    )
    parser.set_defaults(main=_lazy(module))
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; the parsed namespace has `main`, the command to call."""
    parser = argparse.ArgumentParser(
        "qir", description=TOP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"qir {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what each pass did")
    parser.add_argument("--memory-limit", metavar="4GB", help="refuse what needs more (QIR_MEMORY_LIMIT)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _quantize(commands)
    _run(commands)
    _compare(commands)
    inspect = _command(commands, "inspect", "inspect", "show what is in a model", INSPECT)
    inspect.add_argument("model", type=Path, metavar="MODEL.onnx")
    inspect.add_argument("--layers", action="store_true", help="every layer and every scale, not only the totals")
    _json_option(inspect)
    _shape_option(inspect)
    recipe = _command(
        commands, "recipe", "quantize:print_recipe", "print a recipe as TOML, to edit and give to quantize", RECIPE
    )
    recipe.add_argument("recipe", metavar="NAME|FILE.toml", help=", ".join(RECIPES))
    _bench(commands)
    _diagnose(commands)
    _search(commands)
    demo = _command(commands, "demo", "demo", "quantize and check a small trained network", DEMO)
    demo.add_argument(
        "--network",
        default="digits_residual",
        choices=("digits_residual", "digits_mobile", "digits_inception"),
        help="default: %(default)s",
    )
    demo.add_argument("--recipe", default="w8a8", choices=RECIPES, help="default: %(default)s")
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.onnx",
        help="where the result goes (default: NETWORK.RECIPE.onnx here)",
    )
    return parser


def _quantize(commands: Any) -> None:
    parser = _command(commands, "quantize", "quantize", "turn a float ONNX network into an integer-only one", QUANTIZE)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", type=output, required=True, metavar="OUT.onnx")
    parser.add_argument(
        "--recipe",
        default="w8a8",
        metavar="NAME|FILE.toml",
        help=f"{', '.join(RECIPES)}, or a TOML file of your own (default: %(default)s)",
    )
    parser.add_argument("--range", dest="method", choices=METHODS, help="how ranges are chosen (default: the recipe's)")
    parser.add_argument(
        "--per-tensor", action="store_true", help="one weight scale for each layer, not for each channel"
    )
    parser.add_argument(
        "--io",
        choices=("float", "integer"),
        default="float",
        help="what the result takes and gives (default: %(default)s)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=(21, 28),
        default=21,
        help="21 runs in today's runtimes; 28 has signed shifts (default: %(default)s)",
    )
    parser.add_argument("--strip-softmax", action="store_true", help="drop a final Softmax: the result gives logits")
    parser.add_argument(
        "--fold-normalization",
        action="store_true",
        help="put (pixel - mean) / std into the first layer: the result takes uint8 pixels",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="calibrate with N processes (default: 1)")
    parser.add_argument(
        "--encodings", type=Path, metavar="FILE.json", help="grids that AIMET has chosen, in place of calibrated ones"
    )
    parser.add_argument("--strict", action="store_true", help="write nothing where the network has collapsed")
    parser.add_argument("--ranges", type=output, metavar="FILE.json", help="save the calibration ranges here")
    parser.add_argument("--report", type=output, metavar="FILE.json", help="save what each pass did here")
    _shape_option(parser)
    _data_options(parser, "calibration data", required=False)


def _bench(commands: Any) -> None:
    parser = _command(commands, "bench", "bench", "measure how fast a model runs", BENCH)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the fastest that runs the model here")
    parser.add_argument(
        "--against", choices=BACKENDS, action="append", default=[], help="compare with this one; may be repeated"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="samples a run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="how long (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--profile", action="store_true", help="time, MACs and bytes of each layer")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="save the profile here")
    parser.add_argument(
        "--latency-table", type=Path, metavar="FILE.json", help="time each layer with 4- and 8-bit weights, for search"
    )
    _shape_option(parser)


def _run(commands: Any) -> None:
    parser = _command(commands, "run", "run", "execute a model on data", RUN)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", type=output, metavar="OUT.npz", help="write the outputs, an array for each")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: the fastest here for an integer model, else onnxruntime"
    )
    parser.add_argument("--dequantize", action="store_true", help="integer outputs as the reals they stand for")
    _shape_option(parser)
    _data_options(parser, "inputs")


def _compare(commands: Any) -> None:
    parser = _command(commands, "compare", "compare", "compare a float network with its integer version", COMPARE)
    parser.add_argument("float_model", type=Path, metavar="FLOAT.onnx")
    parser.add_argument("integer_model", type=Path, metavar="INTEGER.onnx")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="onnxruntime", help="what runs the integer model (default: %(default)s)"
    )
    parser.add_argument("--worst", type=positive, metavar="N", help="show the N worst tensors only")
    parser.add_argument("--strip-softmax", action="store_true", help="the integer model was made with --strip-softmax")
    _json_option(parser)
    _shape_option(parser)
    _data_options(parser, "inputs")


def _diagnose(commands: Any) -> None:
    parser = _command(commands, "diagnose", "diagnose", "say where a quantized network loses accuracy", DIAGNOSE)
    parser.add_argument("model", type=Path, metavar="FLOAT.onnx")
    parser.add_argument("--recipe", default="w8a8", metavar="NAME|FILE.toml", help="default: %(default)s")
    parser.add_argument("--worst", type=positive, default=8, metavar="N", help="tensors explained (default: 8)")
    parser.add_argument("--remedies", action="store_true", help="try each change of the recipe that may help")
    parser.add_argument("--strip-softmax", action="store_true", help="look at the logits")
    _json_option(parser)
    parser.add_argument(
        "--like", type=Path, metavar="INTEGER.onnx", help="--mean, --std and --crop that this model was made with"
    )
    _shape_option(parser)
    _data_options(parser, "calibration data")


def layer_bits(text: str) -> tuple[str, str]:
    """ "layer=4/8" as (layer, bits)."""
    name, equals, bits = text.rpartition("=")
    if not (name and equals and bits):
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=W/A, e.g. conv1=8/8")
    return name, bits


def _search(commands: Any) -> None:
    parser = _command(commands, "search", "search", "choose the bits of each layer under limits", SEARCH)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", type=output, metavar="OUT", help="an integer .onnx, or a recipe .toml")
    limits = parser.add_argument_group("limits", "any combination; a number, 20G, 1.5MB, or 0.75x of all at 8 bits")
    limits.add_argument("--size", dest="size_limit", metavar="L", help="bytes of the weights")
    limits.add_argument("--bops", metavar="L", help="bit operations")
    limits.add_argument("--linear", metavar="L", help="MACs times the wider operand's bits")
    limits.add_argument("--quadratic", metavar="L", help="MACs times both operands' bits / 16")
    limits.add_argument("--latency-limit", metavar="L", help="in the unit of the --latency table")
    parser.add_argument(
        "--latency", metavar="TABLE.json|BACKEND", help="seconds of each layer at each choice; cpu or cuda: timed here"
    )
    parser.add_argument("--save-latency", type=output, metavar="FILE.json", help="save the times here")
    parser.add_argument("--choices", metavar="W/A,...", help="bits to choose from (default: 4/4,4/8,8/8)")
    for option, words in (("--pin", "this layer has these bits"), ("--forbid", "this layer must not have these bits")):
        parser.add_argument(
            option, action="append", default=[], type=layer_bits, metavar="LAYER=W/A", help=f"{words}; may be repeated"
        )
    parser.add_argument("--residual-groups", action="store_true", help="layers that a sum joins have the same bits")
    parser.add_argument(
        "--measure",
        choices=("fisher", "hessian", "kl", "mse", "sqnr"),
        default="fisher",
        help="of sensitivity (default: %(default)s)",
    )
    parser.add_argument("--loss", choices=("cross_entropy", "mse"), default="cross_entropy", help="for the derivatives")
    parser.add_argument("--sensitivity", type=Path, metavar="FILE.json", help="measured before")
    parser.add_argument("--save-sensitivity", type=output, metavar="FILE.json", help="save it here")
    parser.add_argument("--recipe", default="w4a8", metavar="NAME|FILE.toml", help="for the rest (default: w4a8)")
    parser.add_argument("--strip-softmax", action="store_true", help="drop a final Softmax")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bits, sensitivity and saving of each layer")
    parser.add_argument("--pareto", type=Path, metavar="FILE.png", help="perturbation over the first limit's cost")
    _shape_option(parser)
    _data_options(parser, "calibration data", size="--image-size")
