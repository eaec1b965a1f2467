"""The time to the first token of a prompt that fills the context, and what is told while it is filled."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sweeper.errors import TimeOver
from sweeper.lab.simulated_power import SimulatedMeter
from sweeper.lab.simulator import MACHINES, QUIET, SimulatedEngine, default_configuration
from sweeper.lab.virtual_time import VirtualClock
from sweeper.measure.trial import (
    NOT_FILLED,
    OUT_OF_TIME,
    UNLIMITED,
    Limit,
    Stage,
    _Filling,
    first_token_when_full,
    measure,
    wait_for_temperature,
)
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

    def measure(
        self, workload: Workload, stage: Stage, limit: Limit = UNLIMITED, **changes: object
    ) -> Measurement:
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
            limit=limit,
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
    steps = [phase for phase in told if phase.startswith(f"{fill}, ")]
    assert steps[-1] == f"{fill}, 100 %"
    assert [phase for phase in told if phase not in steps] == [
        *("load", "at rest", "warm-up", fill, "prefill", "decode")
    ]
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


def within(fill: float = math.inf, spare: float = math.inf) -> Limit:
    return Limit(lambda: fill, lambda: spare)


def test_a_fill_that_cannot_end_in_time_is_given_up_long_before_its_end() -> None:
    bench = Bench()
    whole = bench.measure(DEEP, Stage.screening(DEEP)).fill
    assert whole is not None
    bench = Bench()
    began = bench.clock()
    deadline = began + whole.seconds / 2
    with pytest.raises(
        TimeOver, match=rf"fill {FULL:,} tokens, which would take about .* s \(computed\)"
    ) as over:
        bench.measure(DEEP, Stage.screening(DEEP), limit=within(fill=deadline - began))
    assert bench.clock() - began < whole.seconds / 2
    assert over.value.more_seconds == pytest.approx(whole.seconds, rel=0.1)
    assert bench.measure(DEEP, Stage.screening(DEEP)).fill is not None  # the engine can be used again


def test_without_progress_only_the_end_of_the_time_ends_a_fill() -> None:
    left = iter([5.0, -0.1])
    filling = _Filling(100, lambda *_: None, Limit(lambda: next(left), lambda: 0.0), lambda: 1.0, 0.0)
    filling(0)
    with pytest.raises(TimeOver, match=r"too short to fill 100 tokens$"):
        filling(0)


def test_progress_that_stands_still_between_two_batches_condemns_no_fill() -> None:
    now = 10.0
    filling = _Filling(100, lambda *_: None, within(fill=20.0), lambda: now, 0.0)
    filling(50)  # another 10 s
    now = 19.0
    filling(50)
    assert filling.whole_seconds == pytest.approx(20.0)


CHAT = replace(DEEP, depth=0, prompt_tokens=64, generated_tokens=16)
VISIT = replace(Stage.final(CHAT), full_depth=True)


@pytest.mark.parametrize(("spare", "deep"), [(math.inf, 2), (1.0, 0)])
def test_a_full_context_that_has_no_time_is_left_out_of_the_visit(spare: float, deep: int) -> None:
    found = Bench().measure(CHAT, VISIT, n_ctx=512, limit=within(spare=spare))
    assert sum(window.depth > 0 for window in found.windows) == deep
    assert {"tokens_per_second", "prompt_tokens_per_second", "watts"} <= found.metrics.keys()


def test_a_full_context_that_is_given_up_costs_the_visit_nothing_else() -> None:
    bench = Bench()
    found = bench.measure(CHAT, VISIT, n_ctx=512, limit=within(fill=0.0))
    assert {window.depth for window in found.windows} == {0}
    assert found.fill is None
    assert found.metrics["memory_mib"].median > 0
    assert OUT_OF_TIME in bench.phases


def test_a_measurement_knows_the_time_of_its_fill_and_of_a_prompt() -> None:
    found = Bench().measure(DEEP, Stage.screening(DEEP))
    assert found.fill is not None
    assert found.fill_seconds == pytest.approx(found.fill.seconds, rel=0.2)  # and a few tokens before it
    assert found.prompt_seconds == pytest.approx(
        found.metrics["time_to_first_token_seconds"].median, rel=0.5
    )  # 64 tokens fill no batch
