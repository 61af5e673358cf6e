"""The plans that sessions keep."""

from __future__ import annotations

import pytest

from qir.runtime.compile.cache import PlanCache


def test_the_plan_used_longest_ago_goes_first_and_before_the_next_is_made() -> None:
    kept: list[list[int]] = []
    cache: PlanCache[int, str] = PlanCache(2)
    for key in (1, 2, 1, 3, 1):
        cache.of(key, lambda key=key: kept.append(list(cache)) or f"plan {key}")
    assert kept == [[], [1], [1]]
    assert dict(cache) == {3: "plan 3", 1: "plan 1"}


def test_a_plan_that_cannot_be_made_leaves_nothing() -> None:
    cache: PlanCache[int, str] = PlanCache()
    with pytest.raises(ZeroDivisionError):
        cache.of(1, lambda: str(1 // 0))
    assert not cache
