"""Why the recommended settings: computed effects of single settings, and words where nothing can be said."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sweeps import no_front, reading, running, sweep

from sweeper.records import Configuration, Reading, SweepRecord, TrialRecord
from sweeper.report.documents import front_document
from sweeper.report.formats import json_text
from sweeper.report.html import html_report
from sweeper.report.influence import LEAST_TRIALS
from sweeper.report.markdown import markdown_report
from sweeper.report.terminal import front_text
from sweeper.report.why import MOST_ROWS, Effect, why, why_document, why_not, why_table
from sweeper.results.assemble import conclude

BASE = Configuration(n_threads=2, n_threads_batch=2, flash_attn=False, n_ubatch=512)
PICK = BASE.with_(n_threads=4, flash_attn=True, n_ubatch=256)
BY_THREADS = {1: 0.6, 2: 1.0, 4: 1.8}


def swept(configurations: list[Configuration], noise: float, seed: int = 1) -> SweepRecord:
    """A sweep of the baseline, these configurations, and the pick; only the first and the last were measured twice."""
    rng = random.Random(seed)

    def trial(number: int, c: Configuration, again: bool) -> TrialRecord:
        speed = 10 * BY_THREADS[c.n_threads] * (1.1 if c.flash_attn else 1.0) * math.exp(rng.gauss(0, noise))
        watts = (5 + 5 * c.n_threads) * math.exp(rng.gauss(0, noise))
        figures = {"tokens_per_second": speed, "watts": watts, "joules_per_token": watts / speed}
        metrics = {name: reading(value, 0.01, 3) for name, value in figures.items()}
        return TrialRecord(number, "complete", c, metrics=metrics, remeasured=again)

    everything = [BASE, *configurations, PICK]
    last = len(everything) - 1
    trials = tuple(trial(n, c, n in (0, last)) for n, c in enumerate(everything))
    space = {"n_threads": [1, 2, 4], "flash_attn": [True, False], "n_ubatch": [256, 512]}
    made = replace(sweep(kind="measured"), trials=trials, space=space, constraints=(), caveats=(), notes=())
    return conclude(replace(made, baseline_configuration=BASE))


def searched(count: int, noise: float, seed: int = 1) -> SweepRecord:
    """A search that tried flash attention mostly with many threads, as a search does that looks for speed."""
    rng = random.Random(seed)
    tried = []
    for _ in range(count):
        threads = rng.choice([1, 2, 4])
        attention = rng.random() < (0.85 if threads == 4 else 0.15)
        tried.append(BASE.with_(n_threads=threads, flash_attn=attention, n_ubatch=rng.choice([256, 512])))
    return swept(tried, noise, seed)


def effects(record: SweepRecord) -> dict[str, tuple[Effect, ...]]:
    found = why(record)
    assert found is not None
    return {reason.parameter: reason.effects for reason in found.reasons}


@pytest.mark.parametrize("seed", range(5))
def test_each_setting_gets_its_own_effect_although_they_were_tried_together(seed: int) -> None:
    record = searched(40, 0.005, seed)
    base = record.trial(0).metrics["tokens_per_second"].median
    speed, watts = effects(record)["n_threads"]
    assert speed.percent == pytest.approx(80, abs=4)
    assert watts.percent == pytest.approx(67, abs=4)
    assert speed.change == pytest.approx(0.8 * base, rel=0.05)
    assert speed.low is not None
    assert speed.high is not None
    assert speed.low < 0.8 * base < speed.high
    attention, no_watts = effects(record)["flash_attn"]
    assert attention.percent == pytest.approx(10, abs=3)
    assert (no_watts.words, no_watts.change) == ("no visible effect", None)
    assert [one.words for one in effects(record)["n_ubatch"]] == ["no visible effect"] * 2
    assert [reason.parameter for reason in why(record).reasons][:2] == ["n_threads", "flash_attn"]


def test_an_interval_contains_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        record = searched(30, 0.05, seed)
        speed = effects(record)["n_threads"][0]
        truth = math.expm1(math.log(1.8)) * record.trial(0).metrics["tokens_per_second"].median
        hits += speed.low is not None and speed.high is not None and speed.low <= truth <= speed.high
    assert hits >= 180


def test_noise_that_could_hide_an_effect_is_called_so() -> None:
    loud = effects(searched(30, 0.4))
    assert loud["n_ubatch"][0].words == "too noisy to say"
    assert loud["n_ubatch"][0].change is None


def test_settings_that_always_changed_together_are_not_told_apart() -> None:
    both = [PICK.with_(n_ubatch=512), BASE] * 10
    record = swept(both, 0.01)
    found = effects(record)
    assert found["n_threads"][0].words == found["flash_attn"][0].words == "too noisy to say"


def test_a_setting_that_stays_says_whether_its_values_differ() -> None:
    tried = [BASE.with_(n_threads=t, flash_attn=a) for t in (1, 2) for a in (True, False)] * 5
    record = swept(tried, 0.005)
    same = BASE.with_(flash_attn=True)
    last = replace(record.trials[-1], configuration=same)
    slower = {**last.metrics, "tokens_per_second": reading(11.0, 0.01, 3), "watts": reading(15.0, 0.01, 3)}
    record = conclude(replace(record, trials=(*record.trials[:-1], replace(last, metrics=slower))))
    assert record.recommended == last.number
    found = why(record)
    assert found is not None
    kept = [reason for reason in found.reasons if reason.is_default]
    assert [reason.parameter for reason in kept] == ["n_threads"]
    assert kept[0].effects[0].words in ("1: −39 %", "1: −40 %", "1: −41 %")
    assert kept[0].effects[1].words in ("1: −32 %", "1: −33 %", "1: −34 %")
    assert found.reasons[-1] is kept[0]
    table = why_table(record)
    assert table is not None
    assert table.rows[-1].cells[0] == "n_threads 2 (default)"


def test_a_setting_whose_other_values_all_failed_has_no_effect_to_show() -> None:
    record = searched(30, 0.005)
    lost = TrialRecord(99, "failed", PICK.with_(type_k="q8_0"), reason="refused")
    found = effects(conclude(replace(record, trials=(*record.trials, lost))))
    assert [one.words for one in found["type_k"]] == ["–", "–"]


def test_too_few_trials_are_one_line() -> None:
    record = searched(LEAST_TRIALS - 3, 0.01)
    said = why_not(record)
    assert said.endswith(f"{LEAST_TRIALS - 1} have figures, and {LEAST_TRIALS} are needed")
    assert why_table(record) is None
    for text in (front_text(record, 120), markdown_report(record), html_report(record)):
        assert said in " ".join(text.split())
    assert why_not(searched(LEAST_TRIALS - 2, 0.01)) == ""


def test_default_settings_need_no_reason() -> None:
    record = searched(LEAST_TRIALS - 3, 0.01)
    assert why_not(record)
    alike = tuple(replace(trial, metrics=record.trials[0].metrics) for trial in record.trials)
    tied = conclude(replace(record, trials=alike))
    assert tied.recommended == tied.baseline
    assert why_not(tied) == ""


def test_nothing_is_said_without_a_recommendation_or_a_comparison() -> None:
    noisy = searched(30, 0.01)
    wild = {**noisy.trials[0].metrics, "tokens_per_second": Reading(10, 1, 25, 3)}
    disturbed = replace(noisy, trials=(replace(noisy.trials[0], metrics=wild), *noisy.trials[1:]))
    for record in (no_front(), running(sweep(), 30), disturbed, replace(noisy, baseline=None)):
        assert why(record) is None
        assert why_not(record) == ""
        assert why_document(record) is None
        assert "why?" not in front_text(record)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_terminal_has_at_most_eight_aligned_lines_under_the_recommendation(width: int, gpu: bool) -> None:
    record = sweep(80, "measured" if gpu else "estimated", gpu)
    lines = front_text(record, width).splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("  why? (computed from "))
    block = lines[first : lines.index("", first)]
    above = lines[:first][::-1]
    assert "(recommended)" in " ".join(above[: above.index("")])
    assert len(block) <= 8
    table = why_table(record, MOST_ROWS)
    assert table is not None
    assert len(block) == len(table.rows) + 1
    for line, row in zip(block[1:], table.rows, strict=True):
        assert line.startswith(f"  {row.cells[0]} ")
    if not gpu:
        assert "W estimated" in block[0]


def test_what_does_not_fit_is_counted() -> None:
    record = sweep(120, "measured", gpu=True)
    whole, short = why_table(record), why_table(record, 3)
    assert whole is not None
    assert short is not None
    assert len(short.rows) == 3
    assert short.rows[-1].cells[0] == f"and {len(whole.rows) - 2} more, in report.html"


def test_programs_get_the_same_figures() -> None:
    record = searched(40, 0.005)
    document = json.loads(json_text(front_document(record)))["why"]
    assert (document["kind"], document["trials"]) == ("computed", 42)
    threads = document["settings"][0]
    assert (threads["parameter"], threads["value"], threads["default"]) == ("n_threads", 4, 2)
    speed = threads["effects"]["tokens_per_second"]
    assert speed["low"] < speed["change"] < speed["high"]
    assert speed["words"] is None
    quiet = next(one for one in document["settings"] if one["parameter"] == "n_ubatch")["effects"]["watts"]
    assert quiet == {"change": None, "low": None, "high": None, "percent": None, "words": "no visible effect"}


def test_every_form_shows_the_table() -> None:
    record = searched(40, 0.005)
    threads = "n_threads 4 (default 2)"
    assert threads in front_text(record)
    assert threads in markdown_report(record).replace("\\", "")
    assert threads in html_report(record)
    assert (
        "+80 %" in front_text(record, 120)
        or "+79 %" in front_text(record, 120)
        or "+81 %" in front_text(record, 120)
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 4]), st.booleans(), st.integers(1, 4096), st.sampled_from(["f16", "q8_0"])
        ),
        min_size=LEAST_TRIALS - 2,
        max_size=40,
    ),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_whatever_was_tried_gives_figures_or_words(
    tried: list[tuple[int, bool, int, str]], noise: float
) -> None:
    record = swept(
        [BASE.with_(n_threads=t, flash_attn=a, n_ubatch=u, type_k=k) for t, a, u, k in tried], noise
    )
    found = why(record)
    for reason in found.reasons if found else ():
        for effect in reason.effects:
            assert bool(effect.words) == (effect.change is None)
            if effect.change is not None:
                assert effect.low <= effect.change <= effect.high
                assert effect.low * effect.high > 0  # noise does not explain it
    assert front_text(record)
