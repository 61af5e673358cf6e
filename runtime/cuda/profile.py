"""Times of a plan's launches as rows of a profile: each layer against the two ceilings of the device."""

from __future__ import annotations

import numpy as np

from qir.cost import macs
from qir.graph import Node

from ..profile import Profile, Row
from .device.interface import Launch
from .planner.fusion import Group
from .runner import Runner


def profile(runner: Runner, repeat: int = 20) -> Profile:
    """Times every launch of a plan by itself (caches warm, no overlap), and adds them up by layer."""
    plan = runner.plan
    runner.drain()
    launches: dict[Node, list[tuple[Launch, float]]] = {}
    for launch, seconds in zip(runner.launches, plan.device.time(runner.launches, repeat), strict=True):
        launches.setdefault(launch.head, []).append((launch, seconds))
    tops, gbs = plan.device.ceilings()
    rows: list[Row] = []
    for head, timed in launches.items():
        kernels = tuple(launch.kernel.expression.removeprefix("qir::") for launch, _ in timed)
        group = plan.groups[head]
        work, moved = macs(head) * plan.batch, _bytes(runner, group)
        spent = sum(seconds for _, seconds in timed)
        least = max(2 * work / (tops * 1e12), moved / (gbs * 1e9))
        nodes = tuple(n.name for n in (*group.nodes, group.second) if n is not None)
        roofline = least / spent if spent else 0.0
        rows.append(Row(head.op, nodes, spent, work, moved, kernels=kernels, roofline=roofline))
    return Profile(tuple(rows), plan.device.name, plan.batch, (tops, gbs))


def _bytes(runner: Runner, group: Group) -> int:
    """Bytes of what a group reads and of its results, each touched once; packed weights count as they are packed."""
    total = 0
    results = (*group.nodes[-1].outputs, *(group.second.outputs if group.second else ()))
    for value in dict.fromkeys((*group.inputs, *results)):
        if value.data is not None:
            bits = value.dtype.bits if value.dtype.is_integer else 8 * value.data.itemsize
            total += value.data.size * bits // 8
        elif value in runner.plan.placements:
            place = runner.plan.placements[value]
            total += int(np.prod(place.shape)) * place.dtype.itemsize
    return total
