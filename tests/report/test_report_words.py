import math
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sweeps import sweep

from sweeper.records import (
    Caveat,
    Configuration,
    PowerSource,
    Prices,
    PromptFile,
    Reading,
    TrialRecord,
    Workload,
)
from sweeper.report import words
from sweeper.report.picks import next_commands, picks
from sweeper.report.words import (
    MISSING,
    TOO_NOISY,
    change,
    clean,
    decimals,
    figure,
    half_width,
    head,
    power_line,
    prompts_in_words,
    searched,
    settings,
    spread,
    tally,
    warnings,
)
from sweeper.results.ceiling import Ceiling, ceiling, with_ceiling_caveats
from sweeper.results.price import kwh_per_year, money, per_hour, per_million_tokens


@given(st.floats(min_value=0.01, max_value=1e6))
def test_a_figure_keeps_three_significant_digits(value: float) -> None:
    assert float(figure(value)) == pytest.approx(value, rel=0.006)


def test_what_is_missing_is_never_written_as_zero() -> None:
    assert figure(None) == spread(None) == figure(math.nan) == MISSING


def test_a_spread_shows_the_wider_half_of_the_interval() -> None:
    reading = Reading(29.8, 29.6, 30.2, 10)
    assert half_width(reading) == pytest.approx(0.4)
    assert spread(reading) == "29.8 ± 0.4"


def test_one_repeat_has_an_unknown_spread() -> None:
    assert spread(Reading(29.8, 29.8, 29.8, 1)) == "29.8 ± ?"


@pytest.mark.parametrize(
    ("value", "base", "words"), [(112, 100, "+12 %"), (72, 100, "−28 %"), (100, 100, "0 %"), (5, 0, "")]
)
def test_a_change_is_told_against_the_baseline(value: float, base: float, words: str) -> None:
    assert change(Reading(value, value, value, 3), Reading(base, base, base, 3)) == words


def test_a_change_within_overlapping_intervals_is_no_change() -> None:
    assert change(Reading(1816, 1418, 2214, 3), Reading(1688, 1574, 1802, 3)) == TOO_NOISY
    assert change(Reading(13.44, 13.2, 13.6, 3), Reading(13.5, 13.4, 13.6, 3)) == "0 %"


@given(st.text())
def test_clean_text_cannot_steer_a_terminal(text: str) -> None:
    assert not {"Cc", "Cf", "Cs"} & {unicodedata.category(c) for c in clean(text)}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_decimals_are_few_for_any_number(value: float) -> None:
    assert 0 <= decimals(value) <= 4


def test_settings_name_only_what_differs() -> None:
    base = Configuration()
    assert settings(base.with_(n_threads=4, flash_attn=False), base) == "n_threads=4 flash_attn=off"
    assert settings(base, base) == "baseline"
    assert "n_batch=2048" in settings(base, None)


def test_only_what_took_several_values_counts_as_searched() -> None:
    assert searched(sweep()) == ("n_batch", "n_ubatch", "n_threads", "flash_attn", "quant")


def test_the_tally_adds_up() -> None:
    record = sweep()
    words = tally(record)
    counts = [int(part.split()[0]) for part in words.split(": ")[1].split(", ")]
    assert words.startswith("40 trials: ")
    assert sum(counts) == 40


def test_a_million_tokens_at_one_joule_cost_0_2778_kwh() -> None:
    assert per_million_tokens(1.0, Prices(per_kwh=1.0)) == pytest.approx(0.27778, abs=1e-5)
    assert per_hour(1000, Prices(per_kwh=0.3)) == pytest.approx(0.3)
    assert kwh_per_year(1000, 4) == pytest.approx(1460)


@pytest.mark.parametrize(
    ("amount", "currency", "words"),
    [(0.42, "EUR", "€0.42"), (12.3, "CHF", "12.30 CHF"), (0.000834, "USD", "$0.00083"), (250, "EUR", "€250")],
)
def test_money_is_written_in_the_users_currency(amount: float, currency: str, words: str) -> None:
    assert money(amount, Prices(currency=currency)) == words


def test_the_ceiling_is_bandwidth_over_the_files_size() -> None:
    record = sweep()
    trial = record.trial(0)
    found = ceiling(record, trial)
    assert isinstance(found, Ceiling)
    assert found.tokens_per_second == pytest.approx(55e9 / record.model.file("Q8_0").size_bytes)
    assert found.share == pytest.approx(trial.metrics["tokens_per_second"].median / found.tokens_per_second)


def test_the_ceiling_of_several_users_is_that_of_one_times_their_number() -> None:
    one = sweep()
    four = replace(one, workload=replace(one.workload, users=4))
    alone, together = ceiling(one, one.trial(0)), ceiling(four, four.trial(0))
    assert isinstance(alone, Ceiling)
    assert isinstance(together, Ceiling)
    assert together.tokens_per_second == pytest.approx(4 * alone.tokens_per_second)


def test_own_prompts_are_named_without_their_texts() -> None:
    own = Workload(prompts=PromptFile("log.jsonl", "0123456789abcdef" * 4, 12, 3))
    assert prompts_in_words(own) == "12 prompts of log.jsonl (0123456789ab)"
    assert prompts_in_words(Workload()) == "512 prompt tokens"


def test_watts_without_a_sensor_are_called_not_measured_and_label_no_column() -> None:
    record = sweep()
    none = PowerSource("none", "no sensor", "custom", "none", note="the server runs elsewhere")
    without = replace(record, power=none)
    assert power_line(none) == "not measured: the server runs elsewhere"
    assert "Watts are not measured." in list(warnings(without))
    assert head("watts", none) == head("watts", replace(none, kind="measured"))


@pytest.mark.parametrize(
    ("speed", "cannot"), [(Reading(104, 92, 116, 12), False), (Reading(150, 140, 160, 12), True)]
)
def test_only_what_lies_above_the_ceiling_beyond_noise_cannot_be_true(speed: Reading, cannot: bool) -> None:
    assert Ceiling(100.0, speed.median / 100, speed.low / 100).cannot_be_true is cannot


def test_a_model_that_caches_may_hold_is_not_called_untrue() -> None:
    assert not Ceiling(100.0, 1.5, 1.4, cached=True).cannot_be_true
    record = sweep()
    (file,) = [f for q, f in record.model.files.items() if q == record.trial(0).configuration.quant]
    for size, cached in ((100 * 2**20, True), (600 * 2**20, False)):
        files = {**record.model.files, file.quant: replace(file, size_bytes=size)}
        found = ceiling(replace(record, model=replace(record.model, files=files)), record.trial(0))
        assert isinstance(found, Ceiling)
        assert found.cached is cached


def test_a_speed_that_cannot_be_true_is_marked_on_its_trial_and_on_no_other() -> None:
    record = sweep()
    files = {q: replace(f, size_bytes=2**30) for q, f in record.model.files.items()}  # 51 tok/s at most
    record = replace(record, model=replace(record.model, files=files))
    limit = 55e9 / 2**30
    too_fast, wrongly = record.trials[0], record.trials[1]

    def at(speed: float) -> dict[str, Reading]:
        return {"tokens_per_second": Reading(speed, speed * 0.99, speed * 1.01, 12)}

    fast = replace(too_fast, metrics={**too_fast.metrics, **at(2 * limit)})
    slow = replace(
        wrongly,
        metrics={**wrongly.metrics, **at(limit / 2)},
        caveats=(*wrongly.caveats, Caveat.ABOVE_CEILING),
    )
    marked = with_ceiling_caveats(replace(record, trials=(fast, slow)))
    assert [Caveat.ABOVE_CEILING in t.caveats for t in marked] == [True, False]
    assert [{*t.caveats} - {Caveat.ABOVE_CEILING} for t in marked] == [
        {*too_fast.caveats},
        {*wrongly.caveats},
    ]


def test_a_ceiling_that_is_not_known_says_why() -> None:
    on_gpu = sweep(kind="measured", gpu=True)
    assert "GPU" in str(ceiling(on_gpu, on_gpu.trial(0)))
    simulated = sweep(kind="simulated")
    assert "simulated" in str(ceiling(simulated, simulated.trial(0)))


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(29.84, 29.5, 30.1, 3), "29.8 ± 0.3"),
        (Reading(175.0, 174.7, 175.2, 3), "175.0 ± 0.3"),  # not "175 ± 0"
        (Reading(29.84, 29.84, 29.84, 1), "29.8 ± ?"),
        (Reading(29.84, 29.84, 29.84, 3), "29.8"),
        (None, "–"),
    ],
)
def test_a_spread_is_never_shown_as_none_where_there_is_one(reading: Reading | None, words: str) -> None:
    assert spread(reading) == words


def test_verify_is_not_offered_where_it_cannot_measure_the_users() -> None:
    one = sweep()
    two = replace(one, workload=replace(one.workload, users=2))
    assert any(command.startswith("sweeper verify") for command, _ in next_commands(one))
    assert not any(command.startswith("sweeper verify") for command, _ in next_commands(two))


def test_a_whole_request_that_is_worse_is_said_before_any_saving() -> None:
    record = sweep(kind="measured", gpu=True)
    best = record.trial(record.recommended)
    slow = {
        "prompt_tokens_per_second": Reading(5.0, 4.9, 5.1, 9),
        "prompt_joules_per_token": Reading(20.0, 19.0, 21.0, 9),
    }
    changed = replace(best, metrics={**best.metrics, **slow})
    trials = tuple(changed if t.number == best.number else t for t in record.trials)
    words = picks(replace(record, trials=trials))[0].words
    assert words.startswith("For a whole request (prompt and answer) this setting is worse: ")
    assert words.index(" instead of ") < words.index("While generating alone, compared with the baseline: ")
    assert "While generating alone" not in picks(record)[0].words


def test_the_next_command_of_a_simulated_sweep_keeps_what_the_user_asked_for() -> None:
    typed = ["experiment=longest_context", "engine=simulated", "name=s", "root=here", "workload.n_ctx=8192"]
    record = replace(sweep(kind="simulated"), config={"typed": typed})
    assert [line for line, _ in next_commands(record)] == [
        "sweeper sweep experiment=longest_context workload.n_ctx=8192 model.path=FILE"
    ]
    demo = replace(record, config={"typed": ["experiment=demo"]})
    assert next_commands(demo)[0][0] == "sweeper sweep model.path=FILE"


def test_a_figure_that_noise_hides_is_called_so() -> None:
    assert spread(Reading(10.8, 2.0, 151.8, 9)) == "10.8, too noisy to use"
    assert spread(Reading(10.8, 9.8, 11.8, 9)) == "10.8 ± 1.0"


def test_a_single_visit_is_said_to_be_one_and_not_noise() -> None:
    wide = Reading(100.0, 20.0, 300.0, 4)
    trial = TrialRecord(0, "complete", Configuration(), metrics={"tokens_per_second": wide}, remeasured=True)
    assert words.figures(replace(trial, visits=1), "tokens_per_second") == "100 ± ?"
    assert words.figures(replace(trial, visits=3), "tokens_per_second").endswith("too noisy to use")
