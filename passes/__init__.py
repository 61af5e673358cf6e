"""Passes: rewriting, calibration, quantization and lowering of graphs, each usable alone and in any legal order.

Names are imported when they are first asked for.
"""

if __name__ != "qir.passes":  # the same class must not exist twice
    raise ImportError("import qir.passes, not passes")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, recipes
    from .absorb_bias import AbsorbBias
    from .balance import Balance
    from .base import Pass, PassManager
    from .calibration import calibrate, collect, ranges_from
    from .correct_bias import CorrectBias
    from .data_free import data_free_ranges
    from .equalize import Equalize
    from .fold_batchnorm import FoldBatchNorm
    from .fold_normalization import FoldNormalization
    from .images import Images
    from .insert_qdq import InsertQdq
    from .lower_to_dyadic import LowerToDyadic
    from .pack_int4 import PackInt4
    from .pipeline import quantize, run_recipe
    from .ranges import Ranges
    from .recipes import Recipe
    from .report import PassReport, Report
    from .round_weights import RoundWeights
    from .simplify import Simplify
    from .strip_softmax import StripSoftmax

_MODULES: dict[str, str] = {
    "AbsorbBias": "absorb_bias", "Balance": "balance", "Pass": "base", "PassManager": "base",
    "calibrate": "calibration",
    "collect": "calibration", "ranges_from": "calibration", "CorrectBias": "correct_bias",
    "data_free_ranges": "data_free", "Equalize": "equalize", "FoldBatchNorm": "fold_batchnorm",
    "FoldNormalization": "fold_normalization", "Images": "images", "InsertQdq": "insert_qdq",
    "LowerToDyadic": "lower_to_dyadic", "PackInt4": "pack_int4", "quantize": "pipeline", "run_recipe": "pipeline",
    "Ranges": "ranges",
    "Recipe": "recipes", "PassReport": "report", "Report": "report", "Simplify": "simplify",
    "StripSoftmax": "strip_softmax",
    "RoundWeights": "round_weights",
}  # fmt: skip
"""Name -> module of this package that defines it."""

__all__ = [
    "AbsorbBias", "Balance", "CorrectBias", "Equalize", "FoldBatchNorm", "FoldNormalization", "Images", "InsertQdq",
    "LowerToDyadic", "PackInt4", "Pass", "PassManager", "PassReport", "Ranges", "Recipe", "Report", "RoundWeights",
    "Simplify", "StripSoftmax",
    "calibrate", "collect", "data", "data_free_ranges", "quantize", "ranges_from", "recipes", "run_recipe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name in ("data", "recipes"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'qir.passes' has no attribute {name!r}")
