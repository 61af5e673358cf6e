"""Calibration goes over any concurrent.futures.Executor: processes here, a Dask cluster's get_executor() elsewhere."""

from concurrent.futures import ProcessPoolExecutor

import qir
from qir import models, passes

if __name__ == "__main__":
    digits = models.digits()
    graph = qir.load(models.bundled_path("digits_residual"))
    prepared, _ = passes.recipes.w8a8().prepare.run(graph)
    data = passes.data.batches(digits.calibration, prepared, batch_size=32)

    alone = passes.calibrate(prepared, data, method="kl")
    with ProcessPoolExecutor(2) as executor:
        together = passes.calibrate(prepared, data, method="kl", executor=executor)
    assert together.to_json() == alone.to_json()  # statistics merge exactly: the same bits

    together.save("digits.ranges.json")
    integer, _ = qir.quantize(graph, digits.calibration, "w8a8", ranges="digits.ranges.json")
    print(f"{len(together)} ranges from {together.samples} samples; {len(integer)} integer operators")
