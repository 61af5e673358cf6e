"""Random float networks through the whole pipeline: every tensor of the integer graph, the same bits everywhere.

The check itself is that of the long run, benchmarks/random_networks.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from qir.testing import Dice, RandomNetwork, networks, random_network
from qir.testing.attention import SPELLINGS, AttentionBuilder


def _long_run() -> Any:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "random_networks.py"
    spec = importlib.util.spec_from_file_location("random_networks", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LONG_RUN = _long_run()
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]


# derandomize: the same 200 networks every time, so that CI does not fail by chance; fresh ones are for the long run
@settings(derandomize=True, max_examples=200, deadline=None, print_blob=True, suppress_health_check=QUIET)
@given(networks(), st.sampled_from(LONG_RUN.NAMES))
def test_reference_is_onnxruntime_on_random_networks(network: RandomNetwork, recipe: str) -> None:
    note(f"recipe {recipe}, network {network!r}")
    assert LONG_RUN.check(network, recipe) > 0


@pytest.mark.parametrize(
    ("seed", "index"),
    [
        (1, 62),  # a tensor that is always zero: ratio of scales beyond 2^29
        (1, 64),  # data_free: a product has no limits where its factors have none
        (2, 6),  # an output whose consumers move it: its range was looked up after its renaming
        (2, 174),  # data_free: the limits of a constant crossed by rounding
        (11, 1069),  # data_free: a sum of tensors whose moments are of other axes
        (7, 98),  # a result beyond int32 before its clamp
        (31, 487),  # refused before calibration: the stand-in of a quantized tensor was no quantized tensor
    ],
)
def test_what_once_failed(seed: int, index: int) -> None:
    network = LONG_RUN.network_of(seed, index)
    assert LONG_RUN.check(network, LONG_RUN.NAMES[index % len(LONG_RUN.NAMES)]) > 0


@pytest.mark.parametrize("index", range(len(SPELLINGS)))
def test_masks_with_every_recipe_in_turn(index: int) -> None:
    """Attention in each spelling of a mask, as the blocks of random networks have it."""
    builder = AttentionBuilder(length=7, heads=2, size=5, seed=index)
    graph = builder.build(list(SPELLINGS.values())[index])
    assert LONG_RUN.check(RandomNetwork(graph, index, {"x": 1.0}), LONG_RUN.NAMES[index % len(LONG_RUN.NAMES)]) > 0


def test_a_seed_gives_one_network() -> None:
    first, second = random_network(Dice(5)), random_network(Dice(5))
    assert str(first.graph) == str(second.graph)
    assert str(first.graph) != str(random_network(Dice(6)).graph)
    for name, array in first.feeds(3).items():
        assert array.shape[0] == 3 and (array == second.feeds(3)[name]).all()
