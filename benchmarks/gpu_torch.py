"""PyTorch's side of benchmarks/gpu.py: float16 networks, and int8 matrix products layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

SIZES = {"inception_v3": 299}


def per_run(run: Callable[[], Any], wait: Callable[[], Any], seconds: float = 0.5, rounds: int = 5) -> float:
    """Seconds of one run: many are enqueued, the device is waited for, the median of some rounds."""
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    count = max(3, int(seconds / rounds / max(time.perf_counter() - start, 1e-6)))
    found: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        found.append((time.perf_counter() - start) / count)
    return median(found)


def torch_network(net: str) -> Any:
    """A module in half precision, channels last, random weights."""
    import torch

    if net == "efficientnet_lite0":
        import timm

        module = timm.create_model("efficientnet_lite0", pretrained=False)
    else:
        import torchvision

        options = {"init_weights": False, "aux_logits": False} if net == "inception_v3" else {}
        module = getattr(torchvision.models, net)(weights=None, **options)
    return module.eval().half().cuda().to(memory_format=torch.channels_last)


def measure_torch(net: str, batch: int, how: str) -> dict[str, Any]:
    """how: "eager" (in a CUDA graph) or "compile" (reduce-overhead: max-autotune takes minutes a network)."""
    import torch

    size = SIZES.get(net, 224)
    torch.backends.cudnn.benchmark = True
    # Compiled code is cached by code object: without a reset the next batch size would be compiled for dynamic shapes,
    # and the ninth network not at all  [torch.compile, recompile_limit].
    torch.compiler.reset()
    torch.cuda.empty_cache()
    start = time.perf_counter()
    with torch.inference_mode():
        module = torch_network(net)
        x = torch.randn(batch, 3, size, size, device="cuda", dtype=torch.half).to(memory_format=torch.channels_last)
        if how == "compile":
            compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
            run: Callable[[], Any] = lambda: compiled(x)  # noqa: E731
        else:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    module(x)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                module(x)
            run = graph.replay
        run()
        torch.cuda.synchronize()
        built = time.perf_counter() - start
        seconds = per_run(run, torch.cuda.synchronize)

        def waited() -> None:
            run()
            torch.cuda.synchronize()

        latency = per_run(waited, lambda: None, 0.2)
    return {"seconds": seconds, "latency": latency, "build seconds": built}


def int_mm(graph: Any, seconds: dict[str, float], batch: int) -> Iterator[dict[str, Any]]:
    """Each convolution of one group as a product of its matrix sizes; cuBLASLt wants K and N in eights, M over 16.

    seconds: ours, by node name.
    """
    import torch

    known: dict[tuple[int, int, int], float] = {}
    for node in graph.nodes:
        if node.op != "qir.Conv" or node.attrs["group"] != 1 or node.name not in seconds:
            continue
        w = node.input(1).array()
        m = batch * int(np.prod([int(d) for d in node.output.shape[2:]]))
        n, k = -(-w.shape[0] // 8) * 8, -(-int(np.prod(w.shape[1:])) // 8) * 8
        if m <= 16:
            continue
        if (m, n, k) not in known:
            a = torch.randint(-127, 127, (m, k), dtype=torch.int8, device="cuda")
            b = torch.randint(-127, 127, (n, k), dtype=torch.int8, device="cuda").t()
            torch._int_mm(a, b)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(10):
                    torch._int_mm(a, b)
            known[m, n, k] = per_run(graph.replay, torch.cuda.synchronize, 0.1) / 10
        yield {"layer": node.name, "m": m, "n": n, "k": k, "kernel": list(w.shape[2:]), "seconds": seconds[node.name],
               "int_mm": known[m, n, k]}  # fmt: skip
