"""Percentiles of requests, and the metrics of windows with several users."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper import stats
from sweeper.errors import ConfigError
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import Stage, measure, metrics_of
from sweeper.records import EnergyReading, PowerSource, Served, Window, Workload

SOURCE = PowerSource("nvml", "x", "gpu", "measured")
USERS = Workload(prompt_tokens=100, generated_tokens=10, users=4)


def window(tokens: int, served: Served | None, phase: str = "decode") -> Window:
    return Window(phase, 0, tokens, 2.0, EnergyReading(SOURCE, 2.0, 100.0), served=served)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_the_interval_holds_the_percentile_and_both_are_values(values: list[float], share: float) -> None:
    found = stats.percentile(values, share)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.n == len(values)
    assert {found.low, found.median, found.high} <= set(values)
    assert sum(v <= found.median for v in values) >= share * len(values) - 1e-9


def test_the_interval_holds_the_true_percentile_in_95_of_100_cases() -> None:
    draw = random.Random(5)
    held = 0
    for _ in range(1000):
        found = stats.percentile([draw.random() for _ in range(150)], 0.95)
        held += found.low <= 0.95 <= found.high
    assert held >= 930  # 95 %, less three standard deviations


def test_percentiles_of_wrong_input_are_refused() -> None:
    with pytest.raises(ValueError, match="no value"):
        stats.percentile([], 0.95)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        stats.percentile([1.0], 1.0)


def test_windows_with_users_give_their_own_metrics() -> None:
    windows = [
        window(80, Served(4, 6, (0.1, 0.2, 0.9), (1.0, 2.0))),
        window(120, Served(4, 6, (0.2, 0.3, 0.4), (3.0,))),
        window(1000, None, "prefill"),
    ]
    metrics, missing = metrics_of(windows, USERS)
    assert metrics["tokens_per_second"].median == 50
    assert metrics["tokens_per_second_per_user"].median == 12.5
    assert metrics["time_to_first_token_seconds"].median == pytest.approx(0.25)
    assert metrics["time_to_first_token_p95_seconds"].median == 0.9
    assert metrics["time_to_first_token_p95_seconds"].n == 6
    assert metrics["request_seconds"].median == pytest.approx(2.25)
    assert metrics["watts"].median == 50
    assert metrics["joules_per_token"].median == pytest.approx((100 / 80 + 100 / 120) / 2)
    assert not missing


def test_users_without_a_first_token_have_a_reason_and_no_number_from_one_users_prompts() -> None:
    metrics, missing = metrics_of([window(80, Served(4, 0)), window(1000, None, "prefill")], USERS)
    for name in ("time_to_first_token_seconds", "time_to_first_token_p95_seconds", "request_seconds"):
        assert name not in metrics
        assert "raise workload.screening_seconds" in missing[name]


def test_only_metrics_of_one_user_need_prefill_windows() -> None:
    decides = ["tokens_per_second", "time_to_first_token_seconds"]
    assert Stage.screening(Workload(), decides).least_prefill == 2
    assert Stage.screening(USERS, decides).least_prefill == 0
    assert Stage.screening(USERS, ["prompt_tokens_per_second"]).least_prefill == 2


def test_an_engine_of_one_user_refuses_several() -> None:
    kind = MACHINES["minipc"]
    clock = VirtualClock()
    engine = SimulatedEngine(kind, clock)
    meter = SimulatedMeter(engine.trace, clock)
    with pytest.raises(
        ConfigError, match=r"workload\.users above 1 needs engine=llama_server or engine=endpoint"
    ):
        measure(
            default_configuration(kind),
            engine,
            meter,
            replace(USERS, depth=0),
            Stage.screening(USERS),
            clock=clock,
            sleep=clock.advance,
        )
