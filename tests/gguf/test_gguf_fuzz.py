"""A few of the broken files of `benchmarks/fuzz_gguf.py`, each on its way to the first trial of a sweep."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from fuzz_gguf import Fuzz
from gguf_mutations import OF_PARTS, mutants, parse

FILES = 24  # thousands: `python benchmarks/fuzz_gguf.py`
FIRST = 100_000  # far from the numbers that are used by hand


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with Fuzz(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


def test_a_good_file_reaches_its_first_trial(fuzz: Fuzz) -> None:
    for model in fuzz.models:
        assert parse(model).dump() == model.read_bytes()
        assert fuzz.outcome(0, model.read_bytes()).kind == "first trial ran"


def test_no_broken_file_brings_sweeper_down(fuzz: Fuzz) -> None:
    outcomes = [
        (number, changes, fuzz.outcome(number, raw))
        for number, changes, raw in mutants(fuzz.models, FIRST, FILES)
    ]
    assert not [found for found in outcomes if found[2].fault]
    assert any(found.kind.startswith("refused") for _, _, found in outcomes)


@pytest.mark.parametrize("mutation", dict.fromkeys(OF_PARTS))
def test_each_mutation_changes_the_file(fuzz: Fuzz, mutation) -> None:
    good = fuzz.models[0].read_bytes()
    changed = []
    for seed in range(5):
        parts = parse(fuzz.models[0])
        mutation(parts, random.Random(seed))
        changed.append(parts.dump() != good)
    assert any(changed)
