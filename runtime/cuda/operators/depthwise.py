"""Depthwise convolutions: by rows where the kernel for that takes them, else pixel by pixel."""

from __future__ import annotations

import numpy as np

from qir.types import Array

from ..arguments import DEPTHWISE_CONV, record
from ..instances import WALKS, kernel, specialised
from ..planner.fusion import Group
from ..planner.placement import CHUNK, Placement
from ..planner.plan import Plan
from .epilogue import epilogue
from .packing import pack_depthwise, sums_of


def walks(g: dict[str, int]) -> bool:
    """Whether conv_depthwise_rows takes a layer (see there)."""
    side, stride = g["kernel_h"], g["stride_h"]
    square = g["kernel_w"] == side and g["stride_w"] == stride and g["dilation_h"] == g["dilation_w"] == 1
    outside = (g["out_width"] - 1) * stride + side - g["pad_left"] - g["width"]
    return (side, stride) in WALKS and square and max(outside, g["pad_left"]) <= side // 2 and g["out_width"] >= 4


def depthwise_rows(height: int, others: int) -> int:
    """Rows of the output that a thread walks down where `others` threads stand side by side.

    Up to 16, fewer where a GPU would not be full (132 multiprocessors of 1,024 threads).
    """
    segments = min(max(-(-height // 16), -(-135_168 // max(others, 1))), -(-height // 2))
    return -(-height // max(segments, 1))


def depthwise(plan: Plan, group: Group, x: Placement, w: Array, geometry: dict[str, int]) -> None:
    channels = w.shape[0]
    padded = np.zeros((-(-channels // CHUNK) * CHUNK, *w.shape[2:]), np.int8)
    padded[:channels] = w.reshape(channels, *w.shape[2:])
    origin = group.head.input(1).array()
    g = geometry
    flag = "true" if group.head.input(0).dtype.is_signed else "false"
    finish = epilogue(plan, group, True, sums_of(w.reshape(channels, -1, 1), group.head.input(0).dtype))
    fields = {**geometry, "channels": channels, "pixel_stride": x.strides[-1]}
    side, stride = g["kernel_h"], g["stride_h"]
    if walks(geometry):
        which = kernel(f"conv_depthwise_rows<{flag}, {side}, {stride}>")
        if plan.device.specialises:
            which = specialised(which, int(finish.program))
        packed, order = pack_depthwise(padded, side, stride), (id(origin), "depthwise rows", stride)
        others = g["batch"] * -(-g["out_width"] // WALKS[side, stride]) * -(-channels // 4)
        fields["rows"] = depthwise_rows(g["out_height"], others)
        blocks = -(-others * -(-g["out_height"] // fields["rows"]) // which.threads)
    else:
        which, order = kernel(f"conv_depthwise<{flag}>"), (id(origin), "depthwise")
        packed = np.ascontiguousarray(padded.reshape(len(padded), -1).T)
        count = g["batch"] * g["out_height"] * g["out_width"] * len(padded) // CHUNK
        blocks = min(-(-count // which.threads), 65535)
    weights = plan.packed.constant(packed, order, origin)
    plan.launch(
        which, (blocks,), lambda: [record(DEPTHWISE_CONV, x=x.pointer, w=weights.pointer, **fields), finish()],
    )  # fmt: skip
