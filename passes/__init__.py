"""Passes: rewriting, calibration, quantization and lowering of graphs, each usable alone and in any legal order.

Names are imported when they are first asked for.
"""

if __name__ != "qir.passes":  # the same class must not exist twice
    raise ImportError("import qir.passes, not passes")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import recipes
    from .calibration import data
    from .calibration.collect import calibrate, collect, ranges_from
    from .calibration.correct_bias import CorrectBias
    from .calibration.data_free import data_free_ranges
    from .calibration.images import Images
    from .manager import Pass, PassManager
    from .masks.recognise import RecogniseMasks
    from .pipeline import quantize, run_recipe
    from .prepare.absorb_bias import AbsorbBias
    from .prepare.balance import Balance
    from .prepare.equalize import Equalize
    from .prepare.fold_batchnorm import FoldBatchNorm
    from .prepare.fold_normalization import FoldNormalization
    from .quantization.insert_qdq import InsertQdq
    from .quantization.lower_to_dyadic import LowerToDyadic
    from .quantization.pack_int4 import PackInt4
    from .quantization.ranges import Ranges
    from .quantization.undo_qdq import UndoQdq
    from .recipes import Recipe
    from .report import PassReport, Report
    from .rounding.round_weights import RoundWeights
    from .simplify.strip_softmax import StripSoftmax
    from .simplify.tidy import Simplify

_MODULES: dict[str, str] = {
    "AbsorbBias": "prepare.absorb_bias",
    "Balance": "prepare.balance",
    "CorrectBias": "calibration.correct_bias",
    "Equalize": "prepare.equalize",
    "FoldBatchNorm": "prepare.fold_batchnorm",
    "FoldNormalization": "prepare.fold_normalization",
    "Images": "calibration.images",
    "InsertQdq": "quantization.insert_qdq",
    "LowerToDyadic": "quantization.lower_to_dyadic",
    "PackInt4": "quantization.pack_int4",
    "Pass": "manager",
    "PassManager": "manager",
    "PassReport": "report",
    "Ranges": "quantization.ranges",
    "Recipe": "recipes",
    "RecogniseMasks": "masks.recognise",
    "Report": "report",
    "RoundWeights": "rounding.round_weights",
    "Simplify": "simplify.tidy",
    "StripSoftmax": "simplify.strip_softmax",
    "UndoQdq": "quantization.undo_qdq",
    "calibrate": "calibration.collect",
    "collect": "calibration.collect",
    "data_free_ranges": "calibration.data_free",
    "quantize": "pipeline",
    "ranges_from": "calibration.collect",
    "run_recipe": "pipeline",
    "data": "calibration.data",
    "recipes": "recipes",
}
"""Name -> module of this package that defines it; a module is listed as itself."""

__all__ = [
    "AbsorbBias", "Balance", "CorrectBias", "Equalize", "FoldBatchNorm", "FoldNormalization", "Images", "InsertQdq",
    "LowerToDyadic", "PackInt4", "Pass", "PassManager", "PassReport", "Ranges", "Recipe", "RecogniseMasks", "Report",
    "RoundWeights", "Simplify", "StripSoftmax", "UndoQdq",
    "calibrate", "collect", "data", "data_free_ranges", "quantize", "ranges_from", "recipes", "run_recipe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'qir.passes' has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    return module if name in ("data", "recipes") else getattr(module, name)
