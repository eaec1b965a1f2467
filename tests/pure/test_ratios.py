"""The ratios that benchmarks report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from ratios import paired_ratio, ratio_of, ratio_of_readings

from sweeper.records import Reading

DRIFTING = [100.0, 90.0, 80.0, 70.0, 60.0, 50.0, 110.0, 120.0]


def test_pairs_that_drift_together_have_a_narrow_ratio() -> None:
    faster = [1.1 * speed for speed in DRIFTING]
    paired, alone = paired_ratio(faster, DRIFTING), ratio_of(faster, DRIFTING)
    assert paired.median == pytest.approx(1.1)
    assert alone.median == pytest.approx(1.1)
    assert paired.high - paired.low == pytest.approx(0.0, abs=1e-9)
    assert alone.high - alone.low > 0.1


def test_pairs_need_as_many_repeats_of_both() -> None:
    with pytest.raises(ValueError, match="3 repeats and 2"):
        paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_intervals_of_two_readings_add_up() -> None:
    ratio = ratio_of_readings(Reading(110.0, 106.7, 113.3, 20), Reading(100.0, 96.0, 104.0, 10))
    assert ratio.median == pytest.approx(1.1)
    assert ratio.low == pytest.approx(1.1 * (1 - 0.05))
    assert ratio.high == pytest.approx(1.1 * (1 + 0.05))
    assert ratio.n == 10
