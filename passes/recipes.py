"""Recipes: named pipelines from a float graph to an integer one, as plain data.

A recipe is a frozen dataclass of options; `prepare` is its float side, `quantize(ranges)` its integer side. Recipes
load from TOML files, where `base` names one of these and the other keys change its options:

    base = "w4a8"
    method = "percentile"
    percentile = 99.9
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qir.errors import FOREIGN, ParseError, QuantizationError, said
from qir.files import read_text
from qir.graph import Graph, Stage
from qir.types import Array

from .calibration.correct_bias import CorrectBias
from .calibration.range_methods import METHODS, RangeOptions
from .manager import Pass, PassManager
from .masks.recognise import RecogniseMasks
from .prepare.absorb_bias import AbsorbBias
from .prepare.balance import Balance
from .prepare.equalize import Equalize
from .prepare.fold_batchnorm import FoldBatchNorm
from .prepare.split_weights import SplitWeights
from .quantization.insert_qdq import InsertQdq
from .quantization.lower_to_dyadic import LowerToDyadic
from .quantization.ranges import Ranges
from .rounding.round_weights import METHODS as ROUNDING_METHODS
from .rounding.round_weights import RoundWeights
from .simplify.strip_softmax import StripSoftmax
from .simplify.tidy import Simplify

ROUNDINGS = ("nearest", *ROUNDING_METHODS)
CORRECTIONS = ("empirical", "analytic", "none")
EQUALIZATIONS = ("weights", "activations", "none")


@dataclass(frozen=True)
class Recipe:
    """Options of a whole pipeline; those of `InsertQdq` are named and explained there.

    method:          how activation ranges are set: a name of `range_methods.METHODS`, or "bn" (without data).
    percentile, c:   what the methods "percentile" and "std" need.
    equalize:        before calibration: "weights" (cross-layer equalization, White Paper 3.2), "activations" (the same
                     with an eye on the activations between the layers, see `Balance`) or "none".
    absorb_bias:     move high biases into the next layer, after equalization.
    channel_scales:  factors between the channels of a normalization's or a function's result and the weights behind it,
                     chosen on the data, see `ChannelScales`.
    correct_bias:    "empirical" (from the calibration data), "analytic" (from batch-norm statistics) or "none".
    strip_softmax:   drop a final Softmax, so that the graph returns logits.
    rounding:        of weights: "nearest", or from data "gptq" or "adaround", see `RoundWeights` (biases follow then).
    extra:           passes of your own, each where the stages that it requires are: float passes before batch
                     normalization is folded, those of folded graphs before calibration, of QDQ graphs before lowering,
                     of integer graphs at the end.
    layers:          layer -> (weight bits, input bits), over everything else: what `search` finds.
    """

    name: str = "w8a8"
    method: str = "mse"
    percentile: float = 99.99
    c: float = 6.0
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    weight_range: str = "minmax"
    symmetric: bool = False
    residual: str = "int16"
    output: str = "int16"
    input: str = "int8"
    pool: str = "int8"
    function: str = "int16"
    first_last_bits: int = 8
    headroom: float = 2.0
    equalize: str = "none"
    absorb_bias: bool = False
    channel_scales: bool = True
    correct_bias: str = "empirical"
    strip_softmax: bool = False
    rounding: str = "nearest"
    layers: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    extra: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra))
        for own in self.extra:
            if not isinstance(own, Pass):  # pyright: ignore[reportUnnecessaryIsInstance]  # users pass classes
                raise QuantizationError(f"extra: {own!r} is no pass", hint="an instance of a subclass of passes.Pass")
        if self.method not in (*METHODS, "bn"):
            raise QuantizationError(f"no range method {self.method!r}", hint=f"one of {', '.join((*METHODS, 'bn'))}")
        if self.rounding not in ROUNDINGS:
            raise QuantizationError(f"rounding is {self.rounding!r}", hint=f"one of {', '.join(ROUNDINGS)}")
        if self.equalize not in EQUALIZATIONS:
            raise QuantizationError(f"equalize is {self.equalize!r}", hint=f"one of {', '.join(EQUALIZATIONS)}")
        if self.correct_bias not in CORRECTIONS:
            raise QuantizationError(f"correct_bias is {self.correct_bias!r}", hint=f"one of {', '.join(CORRECTIONS)}")
        if not 50 < self.percentile <= 100:
            raise QuantizationError(f"percentile {self.percentile} is not in (50, 100]")
        if not self.c > 0:
            raise QuantizationError(f"c {self.c} is not positive")
        for name, pair in self.layers.items():
            if len(pair) != 2 or pair[0] not in (4, 8) or pair[1] not in (4, 8, 16):
                raise QuantizationError(f"layers: bits {pair}", where=f"layer {name!r}", hint="(4 or 8; 4, 8 or 16)")
        self.insert(Ranges({}))  # checks the rest

    @property
    def needs_data(self) -> bool:
        """Whether calibration has to see samples."""
        return self.method != "bn"

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths of the narrow grids, for which ranges are wanted."""
        return tuple(sorted({8, *(b for b in (self.activation_bits, *(a for _, a in self.layers.values())) if b < 8)}))

    @property
    def range_options(self) -> RangeOptions:
        return RangeOptions(self.percentile, self.c, self.symmetric)

    @property
    def prepare(self) -> PassManager:
        """The float side: simplify, fold batch normalization, equalize, absorb biases."""
        steps: list[Pass] = [StripSoftmax()] if self.strip_softmax else []
        early = [p for p in self.extra if _stages(p) == {Stage.FLOAT}]
        late = [p for p in self.extra if p not in early and not {Stage.QDQ, Stage.INTEGER} & _stages(p)]
        steps += [RecogniseMasks(), Simplify(), *early, FoldBatchNorm()]
        if self.equalize != "none":
            steps.append(Balance() if self.equalize == "activations" else Equalize())
        if self.absorb_bias:
            steps.append(AbsorbBias())
        return PassManager([*steps, *late, SplitWeights()])

    def insert(self, ranges: Ranges) -> InsertQdq:
        """The pass that places the quantizers."""
        own = {f.name for f in fields(InsertQdq)}
        options: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name in own}
        return InsertQdq(ranges, **options)

    def quantize(
        self,
        ranges: Ranges,
        reference: Graph | None = None,
        means: Mapping[str, Array] | None = None,
        feeds: Iterable[Mapping[str, Array]] | None = None,
    ) -> PassManager:
        """The integer side. Biases are corrected where the float graph and the input means are given.

        With `feeds`, and a rounding other than "nearest", weights are rounded from data, and biases with them.
        """
        steps: list[Pass] = [self.insert(ranges)]
        if self.rounding != "nearest" and reference is not None and feeds is not None:
            bias = self.correct_bias != "none"
            steps.append(RoundWeights(reference, feeds, self.rounding, bias=bias, means=means or {}))
        elif reference is not None and means:
            steps.append(CorrectBias(reference, means))
        steps += [p for p in self.extra if Stage.QDQ in _stages(p)]
        last = [p for p in self.extra if Stage.INTEGER in _stages(p) and Stage.QDQ not in _stages(p)]
        return PassManager([*steps, LowerToDyadic(), *last])

    def but(self, **options: Any) -> Recipe:
        """The recipe with other options.  Raises ParseError naming an unknown one."""
        known = {f.name: f for f in fields(self)}
        for key, value in options.items():
            if key == "extra":
                continue
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise ParseError(f"no option {key!r}", where=f"recipe {self.name!r}", hint=hint)
            kind = type(getattr(self, key))
            if not isinstance(value, (int, float) if kind is float else kind) or (
                isinstance(value, bool) != (kind is bool)
            ):
                raise ParseError(f"{key} = {value!r} is no {kind.__name__}", where=f"recipe {self.name!r}")
        return replace(self, **options)

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """A recipe from a TOML file.  Raises ParseError (not readable, unknown keys), QuantizationError (values)."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        text = read_text(path)
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            where = f"{path}:{line.group(1)}" if line else str(path)
            raise ParseError(f"cannot be read: {error}", where=where) from None
        except FOREIGN as error:  # numbers of 5,000 digits, tables in tables in tables
            raise ParseError(f"cannot be read: {said(error)}", where=str(path)) from None
        base = raw.pop("base", "w8a8")
        raw.setdefault("name", Path(path).stem)
        if isinstance(raw.get("layers"), dict):
            raw["layers"] = {str(k): layer_bits(v, str(path)) for k, v in raw["layers"].items()}
        if not isinstance(base, str) or base not in RECIPES:
            raise ParseError(f"no recipe {base!r} to start from", where=str(path), hint=f"one of {', '.join(RECIPES)}")
        for key, value in raw.items():  # one by one first, so that an error has its line
            try:
                RECIPES[base].but(**{key: value})
            except (ParseError, QuantizationError) as error:
                line = next((i for i, row in enumerate(text.splitlines(), 1) if _assigns(row, key)), None)
                place = f"{path}:{line}" if line else str(path)
                raise type(error)(str(error), where=place) from None
        return RECIPES[base].but(**raw)


def _stages(own: Pass) -> set[Stage]:
    """Where a pass can run."""
    return {own.requires} if isinstance(own.requires, Stage) else set(own.requires)


def _assigns(row: str, key: str) -> bool:
    """Whether a line of TOML sets this key, or opens its table."""
    return re.match(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[\].=]""", row) is not None


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("w8a8"),
        Recipe("w8a8_per_tensor", per_channel=False, equalize="activations"),
        Recipe("w8a16", activation_bits=16),
        Recipe("w4a8", weight_bits=4, weight_range="mse", rounding="gptq"),
        Recipe("w4a4", weight_bits=4, activation_bits=4, weight_range="mse", rounding="gptq"),
        Recipe("data_free", method="bn", correct_bias="analytic"),
    )
}


def layer_bits(pair: Any, where: str) -> tuple[int, int]:
    """[4, 8] of a TOML file.  Raises ParseError."""
    if not (isinstance(pair, list) and len(pair) == 2 and pair[0] in (4, 8) and pair[1] in (4, 8, 16)):  # pyright: ignore[reportUnknownArgumentType]
        hint = "weights have 4 or 8 bits, inputs 4, 8 or 16"
        raise ParseError(f"layers: {pair!r} is no [weight bits, input bits]", where=where, hint=hint)
    return (int(pair[0]), int(pair[1]))  # pyright: ignore[reportUnknownArgumentType]


def recipe_of(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name, from a TOML file, or as it is.  Raises ParseError."""
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe) in RECIPES:
        return RECIPES[str(recipe)]
    if Path(recipe).suffix == ".toml":
        return Recipe.load(recipe)
    raise ParseError(f"no recipe {str(recipe)!r}", hint=f"one of {', '.join(RECIPES)}, or a .toml file")


def w8a8(**options: Any) -> Recipe:
    """8-bit weights per channel, 8-bit activations."""
    return RECIPES["w8a8"].but(**options)


def w8a8_per_tensor(**options: Any) -> Recipe:
    """8 bits, one scale for each weight tensor; equalized first."""
    return RECIPES["w8a8_per_tensor"].but(**options)


def w8a16(**options: Any) -> Recipe:
    """8-bit weights per channel, 16-bit inputs of linear layers (two products of bytes each)."""
    return RECIPES["w8a16"].but(**options)


def w4a8(**options: Any) -> Recipe:
    """4-bit weights (first and last layer 8), 8-bit activations."""
    return RECIPES["w4a8"].but(**options)


def w4a4(**options: Any) -> Recipe:
    """4-bit weights and inputs of linear layers (first and last layer 8)."""
    return RECIPES["w4a4"].but(**options)


def data_free(**options: Any) -> Recipe:
    """8 bits without data: ranges and bias correction from batch-norm statistics."""
    return RECIPES["data_free"].but(**options)
