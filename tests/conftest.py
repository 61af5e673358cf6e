"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

KIT = Path(__file__).resolve().parents[2] / "shared" / "kit"


@pytest.fixture(scope="session")
def kit() -> Path:
    """The folder of real networks and images, which only the developers have."""
    if not (KIT / "nets.json").exists():
        pytest.skip("the kit of real networks (../shared/kit) is not here")
    return KIT
