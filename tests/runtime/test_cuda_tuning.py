"""Tuning: every candidate yields the same bits, the fastest by the clock is taken, and tables outlive processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qir import DType
from qir.errors import BackendError
from qir.runtime.cuda import tuning
from qir.runtime.cuda.compiler import compile_plan
from qir.runtime.cuda.device.cupy_modules import kernel_version
from qir.runtime.cuda.device.emulated import EmulatedDevice, EmulatedRecording
from qir.runtime.cuda.device.interface import ImageMap, Launch
from qir.runtime.cuda.instances import CONV_TILES, INSTANCES
from qir.runtime.cuda.planner.choices import Choice, candidates, first
from qir.runtime.cuda.planner.constants import Constants
from qir.runtime.cuda.runner import Runner
from qir.runtime.cuda.session import Cuda
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case
from qir.types import Array

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def network(seed: int = 0) -> Case:
    """A first layer, 8- and 4-bit layers whose sums can be split, a residual, a product."""
    c = Case(seed, 2)
    x = c.requantize(c.conv(c.input(DType.UINT8, 3, 6, 6), 70, (3, 3), pads=[1] * 4), DType.INT8, channels=70)
    y = c.requantize(c.conv(x, 70, (3, 3), pads=[1] * 4), DType.INT8, channels=70)
    y = c.requantize(c.conv(c.add(y, x), 130, (3, 3), weight=DType.INT4), DType.INT8, channels=130)
    flat = c.node("Flatten", y, axis=1)
    w = c.graph.add_constant("w", c.ints(DType.INT8, (130 * 16, 21)))
    c.node("qir.MatMul", flat, w, None, weight_zero_point=0)
    c.graph.set_outputs([v for n in c.graph.nodes for v in n.outputs if not v.uses()])
    return c


def likes(tile: str, splits: bool) -> EmulatedDevice:
    """A device on which one tile is fast, and split sums are or are not."""

    def clock(launch: Launch) -> float:
        slow = 1.0 if tile in launch.kernel.expression else 2.0
        split = len(launch.grid) == 3 or "finish_splits" in launch.kernel.expression
        return slow * (0.1 if split == splits else 10.0)

    return EmulatedDevice(clock=clock)


def test_every_candidate_yields_the_same_bits() -> None:
    case = network()
    want = Session(case.graph, "reference").run(case.feeds)
    device, turn, most = EmulatedDevice(), 0, 1
    seen: set[str] = set()
    while turn < most:
        plan = compile_plan(
            case.graph,
            device,
            {"N": case.batch},
            case.graph.outputs,
            Constants(device),
            lambda _, c, n=turn: c[n % len(c)],
        )
        most = max(len(c) for _, c, _ in plan.choices.values())
        seen.update(choice.name for _, _, choice in plan.choices.values())
        runner = Runner(plan)
        got = runner.enqueue(case.feeds, dict.fromkeys(want), device.stream()).result()
        for name, expected in want.items():
            np.testing.assert_array_equal(got[name], expected, err_msg=f"{name}, candidate {turn}")
        turn += 1
    assert turn >= 6 and any(not name.endswith("/1") for name in seen)


@pytest.mark.parametrize(("tile", "splits"), [("64, 64,", False), ("128, 64,", False), ("64, 64,", True)])
def test_the_fastest_is_taken_and_only_speed_changes(tmp_path: Path, tile: str, splits: bool) -> None:
    case = network(1)
    want = Session(case.graph, "reference").run(case.feeds)
    device = likes(tile, splits)
    session = Cuda(case.graph, device, tune=tmp_path)
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name])
    plan = session.runner(2, list(want), device.stream()).plan
    for _, options, choice in plan.choices.values():
        assert tile in choice.name
        assert (choice.splits > 1) == (splits and any(o.splits > 1 and tile in o.name for o in options))
    timed = device.timed
    again = Cuda(case.graph, likes("nothing", False), tune=tmp_path)
    again.run(case.feeds)
    kept = again.runner(2, list(want), again.device.stream()).plan
    assert [c.name for _, _, c in kept.choices.values()] == [c.name for _, _, c in plan.choices.values()]
    assert timed and again.device.timed == 0  # type: ignore[attr-defined]


class Picky(EmulatedDevice):
    """Its driver refuses tensor maps, and its GPU launches no tile of 128 x 64."""

    def tensor_map(self, image: ImageMap) -> Array:
        raise BackendError("the driver makes no tensor map")

    def record(self, launches: Sequence[Launch]) -> EmulatedRecording:
        for launch in launches:
            if "128, 64, 4" in launch.kernel.expression:
                raise BackendError("cannot be launched", where=launch.kernel.expression)
        return super().record(launches)


def test_what_a_device_refuses_is_not_chosen(tmp_path: Path) -> None:
    case = Case(0, 2)
    x = case.requantize(case.conv(case.input(DType.UINT8, 120, 6, 6), 70, (3, 3), pad_value=[0]), DType.INT8)
    case.conv(x, 20, (1, 1))
    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    want = Session(case.graph, "reference").run(case.feeds)
    session = Cuda(case.graph, Picky(clock=lambda launch: 1.0, architecture="90a"), tune=tmp_path)
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name])
    options = session.runner(2, list(want), session.device.stream()).plan.choices.values()
    assert all("tma" not in choice.name for _, _, choice in options)
    timed = [set(session.table._measured[key]["seconds"]) for key, _, _ in options]
    assert all(names and not any("128, 64, 4" in name or "tma" in name for name in names) for names in timed)


class Faulty(EmulatedDevice):
    """Its fastest tile adds up wrongly."""

    def record(self, launches: Sequence[Launch]) -> EmulatedRecording:
        found: list[Launch] = []
        for launch in launches:
            arguments = launch.arguments
            if "128, 64, 4" in launch.kernel.expression:
                arguments = (arguments[0].copy(), *arguments[1:])
                arguments[0]["pad_value"] += 1
            found.append(Launch(launch.kernel, launch.grid, arguments, launch.head))
        return super().record(found)


def test_a_candidate_with_other_bits_is_not_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(0, 2)
    x = case.conv(case.input(DType.UINT8, 120, 6, 6), 70, (3, 3), pads=[1] * 4)
    case.conv(case.requantize(x, DType.INT8, channels=70), 20, (3, 3), pads=[1] * 4)
    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    want = Session(case.graph, "reference").run(case.feeds)
    fast = Faulty(clock=lambda launch: 0.1 if "128, 64, 4" in launch.kernel.expression else 1.0)
    session = Cuda(case.graph, fast, tune=tmp_path)
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name])
    plan = session.runner(2, list(want), fast.stream()).plan
    assert all("128, 64, 4" not in choice.name for _, _, choice in plan.choices.values())
    assert "computes other bits" in caplog.text


def test_off_means_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = network()
    device = likes("128, 128", False)
    session = Cuda(case.graph, device, tune=False)
    session.run(case.feeds)
    plan = session.runner(2, [v.name for v in case.graph.outputs], device.stream()).plan
    assert device.timed == 0 and all(choice is options[0] for _, options, choice in plan.choices.values())
    assert tuning.switched_on()
    for value in ("0", "off"):
        monkeypatch.setenv(tuning.SWITCH, value)
        assert not tuning.switched_on()


def test_tables_merge_and_survive_what_is_broken(tmp_path: Path) -> None:
    options = [Choice(t, 1) for t in CONV_TILES[False, 16, False]]
    one, two = tuning.TuningTable("A GPU", tmp_path), tuning.TuningTable("A GPU", tmp_path)
    one.update({"a": {"choice": options[1].name, "seconds": {}}})
    two.update({"b": {"choice": options[2].name, "seconds": {}}})  # of another process, meanwhile
    three = tuning.TuningTable("A GPU", tmp_path)
    assert three.choose("a", options) is options[1] and three.choose("b", options) is options[2]
    assert "a" in three and "c" not in three and three.choose("c", options) is options[0]
    assert three.choose("b", options[:2]) is options[0]  # a candidate that is no more
    assert [p.name for p in tmp_path.iterdir()] == [f"tuning-a-gpu-{kernel_version()}.json"]
    assert "a" not in tuning.TuningTable("B GPU", tmp_path)
    for text in ("{", "[]", '{"device": "A GPU", "entries": {"a": 3}}', json.dumps({"device": "other"})):
        three.path.write_text(text)
        assert "a" not in tuning.TuningTable("A GPU", tmp_path)
    (tmp_path / "file").write_text("")
    tuning.TuningTable("A GPU", tmp_path / "file").update({"a": {"choice": "x", "seconds": {}}})


def test_candidates_are_sensible() -> None:
    """The first is the heuristic's; all can be launched; no two are the same."""
    for tiles in CONV_TILES.values():
        for pixels, channels, k in ((1, 1000, 2048), (49, 512, 4608), (802816, 64, 576), (6272, 2048, 512), (1, 8, 64)):
            found = candidates(tiles, pixels, channels, k)
            assert len({c.name for c in found}) == len(found) <= 72
            assert first("", found) is found[0]
            for c in found:
                assert c.tile in INSTANCES and 1 <= c.splits <= k // 64
                slices, each = k // 64, -(-(k // 64) // c.splits)
                assert -(-slices // each) == c.splits  # none without a share
