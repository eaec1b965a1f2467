"""The time to the first token of a prompt that fills the context, and what is told while it is filled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, QUIET, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import NOT_FILLED, Stage, first_token_when_full, measure, wait_for_temperature
from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import Fill, Measurement, Workload, from_plain, to_plain
from sweeper.search.finals import visit_of

DEEP = Workload(prompt_tokens=256, generated_tokens=64, depth=None)
N_CTX = 4096
FULL = N_CTX - 256 - 64


class Bench:
    """A simulated machine without noise, and the phases that a measurement told."""

    def __init__(self) -> None:
        self.clock, self.phases = VirtualClock(), []
        self.engine = SimulatedEngine(MACHINES["minipc"], self.clock, QUIET)
        self.configuration = default_configuration(self.engine.machine).with_(n_ctx=N_CTX)

    def measure(self, workload: Workload, stage: Stage, **changes: object) -> Measurement:
        self.phases.clear()
        return measure(
            self.configuration.with_(**changes),
            self.engine,
            SimulatedMeter(self.engine.trace, self.clock),
            workload,
            stage,
            listener=lambda name, speed, watts: self.phases.append(name),
            clock=self.clock,
            sleep=self.clock.advance,
        )


def test_the_first_token_comes_after_the_whole_context_was_read() -> None:
    bench = Bench()
    found = bench.measure(DEEP, Stage.screening(DEEP))
    assert found.fill is not None
    assert found.fill.tokens == FULL
    rest = 256 / found.metrics["prompt_tokens_per_second"].median
    assert found.metrics[FIRST_WHEN_FULL].median == pytest.approx(found.fill.seconds + rest)
    assert found.metrics[FIRST_WHEN_FULL].n == 1
    assert found.metrics["time_to_first_token_seconds"].median == pytest.approx(rest)


def test_the_phases_tell_of_the_fill_before_its_windows() -> None:
    bench = Bench()
    bench.measure(DEEP, Stage.final(DEEP))
    told = list(dict.fromkeys(bench.phases))
    fill = f"filling {FULL:,} tokens"
    assert told == ["load", "at rest", "warm-up", fill, f"{fill}, 100 %", "prefill", "decode"]
    assert bench.phases.index(fill) < len(bench.phases) - 1 - bench.phases[::-1].index("warm-up")


def test_a_restored_context_is_not_called_filled() -> None:
    bench = Bench()
    assert bench.measure(DEEP, Stage.screening(DEEP)).fill is not None
    again = bench.measure(DEEP, Stage.screening(DEEP), n_threads=4)
    assert again.fill is None
    assert FIRST_WHEN_FULL not in again.metrics
    assert again.missing[FIRST_WHEN_FULL] == NOT_FILLED


def test_a_part_of_the_context_is_not_called_full() -> None:
    part = replace(DEEP, depth=1024)
    found = Bench().measure(part, Stage.screening(part))
    assert found.fill is None
    assert FIRST_WHEN_FULL not in {**found.metrics, **found.missing}


def test_a_visit_to_an_empty_context_fills_it_at_the_end() -> None:
    chat = replace(DEEP, depth=0, prompt_tokens=64, generated_tokens=16)
    stage = replace(Stage.final(chat), full_depth=True)
    found = Bench().measure(replace(chat), stage, n_ctx=512)
    assert found.fill is not None
    assert found.fill.tokens == 512 - 80
    visit = visit_of(0, 0, found, 1.0)
    assert from_plain(to_plain(visit), type(visit)) == visit
    assert first_token_when_full(visit.fill, visit.windows, chat) == found.metrics[FIRST_WHEN_FULL].median
    assert first_token_when_full(visit.fill, visit.windows, replace(chat, users=2)) is None
    assert first_token_when_full(Fill(400, 1.0), visit.windows, chat) is None  # no window runs there


def test_nothing_is_filled_for_an_empty_context() -> None:
    chat = replace(DEEP, depth=0)
    bench = Bench()
    found = bench.measure(chat, Stage.screening(chat))
    assert not any(phase.startswith("filling") for phase in bench.phases)
    assert FIRST_WHEN_FULL not in {**found.metrics, **found.missing}


def test_a_hot_device_is_waited_for_aloud() -> None:
    clock, told = VirtualClock(), []

    class Cooling:
        def temperature_celsius(self) -> float:
            return 70.0 - clock()

    waited = wait_for_temperature(
        Cooling(), 60.0, clock, clock.advance, lambda name, speed, watts: told.append(name)
    )
    assert waited == pytest.approx(7.0)
    assert set(told) == {"waiting until the device is cooler"}
