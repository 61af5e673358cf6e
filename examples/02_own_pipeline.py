"""The long way: every step is a pass, and what lies between them is yours to look at and to keep."""

from qir import load, models, passes, save
from qir.passes.recipes import Recipe

digits = models.digits()
graph = load(models.bundled_path("digits_mobile"))

# the float side: dropouts and identities go, BatchNorm is folded, channels are equalized
prepare = passes.PassManager([passes.Simplify(), passes.FoldBatchNorm(), passes.Equalize()])
prepared, report = prepare.run(graph)
print(report)

# calibration: single pass, constant memory; the ranges are an artefact of their own
ranges = passes.calibrate(prepared, passes.data.batches(digits.calibration, prepared), method="mse")
ranges.save("digits.ranges.json")
print(f"{len(ranges)} ranges, the output's is {ranges['logits']}")

# the integer side: 8-bit per-tensor weights, quantizers, integers
lower = passes.PassManager([passes.InsertQdq(ranges, per_channel=False), passes.LowerToDyadic()])
integer, report = lower.run(prepared)
save(integer, "digits_mobile.int8.onnx")

# or the same as a recipe, which a TOML file could hold too
recipe = Recipe("mine", method="percentile", percentile=99.9, per_channel=False, equalize="weights")
integer, report = passes.quantize(graph, digits.calibration, recipe)
print(report.passes[-1].summary())
