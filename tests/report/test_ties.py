"""Near-ties are shown as ties, and a pick that nothing keeps leads to the nearest trial by its number."""

from dataclasses import replace

from made_sweeps import sweep

from sweeper.records import Reading, SweepRecord
from sweeper.report.picks import next_commands, recommended
from sweeper.report.terminal import front_text


def with_twin(
    prompt_factor: float, noise: float, watts_factor: float = 1.0001
) -> tuple[SweepRecord, int, int]:
    """A sweep whose recommended trial has a twin on the front that differs by less than noise, but in prompts."""
    record = sweep()
    best = recommended(record)
    assert best is not None
    number, own = max(t.number for t in record.trials) + 1, best.trial

    def around(reading: Reading, factor: float) -> Reading:
        median = reading.median * factor
        return Reading(median, median * (1 - noise), median * (1 + noise), 12)

    factors = {"prompt_tokens_per_second": prompt_factor, "watts": watts_factor}  # a little worse
    twin = replace(
        own,
        number=number,
        metrics={name: around(reading, factors.get(name, 0.9999)) for name, reading in own.metrics.items()},
    )
    known = replace(own, metrics={name: around(reading, 1.0) for name, reading in own.metrics.items()})
    trials = (*(known if t.number == own.number else t for t in record.trials), twin)
    return replace(record, trials=trials, front=(*record.front, number)), own.number, number


def test_a_twin_that_reads_prompts_faster_is_picked() -> None:
    record, own, twin = with_twin(3.0, noise=0.001)
    best = recommended(record)
    assert best is not None
    assert best.trial.number == twin
    assert best.words.endswith(f"A near-tie with #{own}.")


def test_a_dearer_twin_is_named_with_the_speed_that_the_objectives_do_not_see() -> None:
    record, own, twin = with_twin(3.0, noise=0.02, watts_factor=1.015)
    best = recommended(record)
    assert best is not None
    assert best.trial.number == own
    assert f"A near-tie with #{twin}, of which #{twin} reads prompts 3.0 times as fast" in best.words


def test_a_twin_that_reads_prompts_alike_is_named_alone() -> None:
    record, _, twin = with_twin(1.0, noise=0.001)
    best = recommended(record)
    assert best is not None
    assert best.words.endswith(f"A near-tie with #{twin}.")


def test_what_differs_beyond_noise_is_no_tie() -> None:
    best = recommended(sweep())
    assert best is not None
    assert "tie" not in best.words


def test_a_pick_that_nothing_keeps_is_applied_and_verified_by_the_nearest_trials_number() -> None:
    record = replace(sweep(), pick="at-least:99999tok/s")
    best = recommended(record)
    assert best is not None
    assert best.nearest
    assert best.words.startswith(
        "No trial that keeps the constraints and was measured twice reaches 99999 tok/s; the nearest"
    )
    text = front_text(record)
    assert f"#{best.trial.number}: nearest to at-least:99999tok/s" in text
    assert "recommended" not in text
    assert "★" not in text
    assert "the least power" not in text
    lines = [line for line, _ in next_commands(record)]
    assert all(f"--pick {best.trial.number}" in line for line in lines)
