"""A few hundred mutated files, the same every time; the long run is `python -m tests.fuzz --minutes 30 --seed 1`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import kind_of
from tests.fuzz.corpus import Sample, corpus
from tests.fuzz.exercise import KINDS, SUFFIX, exercise
from tests.fuzz.mutate import mutated


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return corpus(11, networks=4)


def test_samples_are_of_every_kind_and_good(samples: list[Sample], tmp_path: Path) -> None:
    assert {s.kind for s in samples} == set(KINDS) - {"images", "warm"}
    for sample in samples:
        path = tmp_path / f"{sample.name}.{SUFFIX.get(sample.kind, 'json')}"
        path.write_bytes(sample.data)
        if sample.kind != "graph":  # large constants are left out of texts
            assert exercise(sample.kind, path) == "done", sample.name


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_end_in_an_error_of_ours_or_in_equal_bits(
    seed: int, samples: list[Sample], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    for case in range(60):
        sample = rng.choice(samples)
        path = tmp_path / f"case.{SUFFIX.get(sample.kind, 'json')}"
        path.write_bytes(mutated(sample, rng))
        try:
            exercise(sample.kind, path)
        except Exception as error:
            pytest.fail(f"seed {seed}, case {case}, {sample.kind} {sample.name}: {type(error).__name__}: {error}")


def test_a_seed_gives_one_run(samples: list[Sample]) -> None:
    runs = [[mutated(s, random.Random(3)) for s in samples] for _ in range(2)]
    assert runs[0] == runs[1]


def test_kinds_of_files() -> None:
    names = {"a.onnx": "model", "a.npz": "npz", "Graph.parse.1.txt": "graph", "ranges_JSON.x.txt": "ranges"}
    assert {n: kind_of(Path(n)) for n in names} == names
