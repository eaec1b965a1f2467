"""What should stand in MLflow, without MLflow: names, limits, notes and views."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracked_sweep import MACHINE, POWER, reading, record, trial, trials

from sweeper.records import Constraint, TrialRecord
from sweeper.tracking.description import LIMIT, describe
from sweeper.tracking.projection import STATUS, TAG_LIMIT, experiment_name, sweep_id, sweep_image, trial_image
from sweeper.tracking.reconcile import BEGIN, merged_note
from sweeper.tracking.views import view_of, view_tag

texts = st.text(max_size=200)


@given(theirs_before=texts, theirs_after=texts, first=texts, second=texts)
def test_a_note_replaces_its_own_part_and_keeps_the_rest(
    theirs_before: str, theirs_after: str, first: str, second: str
) -> None:
    if any("<!--" in text for text in (theirs_before, theirs_after, first, second)):
        return
    there = theirs_before + merged_note("", first) + theirs_after
    again = merged_note(there, second)
    assert again == theirs_before + merged_note("", second) + theirs_after
    assert merged_note(again, second) == again


def test_a_note_whose_marks_were_deleted_is_put_above_the_users_words() -> None:
    assert merged_note("mine", "ours").startswith(BEGIN)
    assert merged_note("mine", "ours").endswith("mine")


@given(
    name=st.text(min_size=1), front=st.integers(0, 40)
)  # from 28 on it is cut; the time grows with the square
def test_a_description_fits_into_a_tag_whatever_the_sweep(name: str, front: int) -> None:
    many = tuple(trial(n, remeasured=True) for n in range(front + 1))
    text = describe(record(sweep=name, trials=many, front=tuple(range(front + 1)), recommended=0))
    assert len(merged_note("", text)) <= TAG_LIMIT
    assert "sweeper apply" in text


def test_a_cut_description_says_where_the_rest_is() -> None:
    many = tuple(trial(n, remeasured=True) for n in range(60))
    text = describe(record(trials=many, front=tuple(range(60)), recommended=3))
    assert LIMIT - 200 < len(text) <= LIMIT
    assert text.endswith("`report.html`, under Artifacts.\n")


def test_nothing_is_recommended_while_a_sweep_runs() -> None:
    text = describe(record("running"))
    assert "has not ended" in text
    assert "Run this" not in text


def test_tags_are_cut_with_a_sign_and_empty_ones_left_out() -> None:
    image = trial_image(record(), trial(1, reason="x" * 9000))
    assert len(image.tags["sweeper.reason"]) == TAG_LIMIT
    assert image.tags["sweeper.reason"].endswith("…")
    assert "sweeper.violations" not in image.tags
    assert all(image.tags.values())


def test_every_state_of_a_trial_has_a_status() -> None:
    states = TrialRecord.__annotations__["state"]
    assert states == "TrialState"
    assert set(STATUS) == {"complete", "failed", "out_of_memory", "infeasible", "dominated", "interrupted"}


def test_as_found_is_written_as_what_was_read_back() -> None:
    space = {"power_limit_watts": {"low": 100, "high": 200}, "quant": ["F16", "Q8_0"]}
    swept = record(space=space)
    assert trial_image(swept, trial(1)).params == {"power_limit_watts": "as found", "quant": "F16"}
    read_back = trial(1, in_force={"power_limit_watts": 170})
    assert trial_image(swept, read_back).params["power_limit_watts"] == "170"


def test_what_is_no_number_is_no_metric() -> None:
    odd = trial(1, metrics={"watts": reading(math.nan), "tokens_per_second": reading(10.0, n=1)})
    assert trial_image(record(), odd).metrics == {"tokens_per_second": 10.0}


def test_a_clock_set_back_makes_no_negative_duration() -> None:
    image = sweep_image(record(updated_utc="2020-01-01T00:00:00+00:00"))
    assert image.end_ms == image.start_ms


@pytest.mark.parametrize("utc", ["2026-11-20T12:00:00Z", "2026-11-20T12:00:00", "2026-11-20T13:00:00+01:00"])
def test_times_are_utc_however_they_are_written(utc: str) -> None:
    assert sweep_image(record(started_utc=utc)).start_ms == 1795176000000


def test_an_identity_is_name_machine_and_start() -> None:
    same = record(
        trials=trials()[:2], updated_utc="2026-11-21T12:00:00+00:00", power=replace(POWER, kind="mixed")
    )
    assert sweep_id(same) == sweep_id(record())
    for other in (
        record(sweep="b"),
        record(started_utc="2026-11-21T12:00:00+00:00"),
        record(machine=replace(MACHINE, fingerprint="b")),
    ):
        assert sweep_id(other) != sweep_id(record())


def test_an_experiments_name_is_the_models() -> None:
    real = record()
    assert experiment_name(real) == "llama-15m"
    assert (
        experiment_name(replace(real, model=replace(real.model, name="org/model\x1b[2J"))) == "org-model [2J"
    )
    assert (
        experiment_name(replace(real, engine=replace(real.engine, simulated=True))) == "llama-15m (simulated)"
    )


def test_a_view_shows_only_this_sweeps_trials_and_what_was_swept() -> None:
    name, value = view_tag(record())
    view = json.loads(value)
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert name == f"mlflow.sharedViewState.{view_of({'sweeper.id': sweep_id(record())})}"
    assert sweep_id(record()) in state["searchFilter"]
    scatter, parallel = state["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("watts", "tokens_per_second")
    assert parallel["selectedParams"] == ["n_threads", "n_threads_batch", "n_batch", "flash_attn"]
    assert len(value) <= TAG_LIMIT


def test_a_trial_outside_a_constraint_says_so_in_its_name_and_its_description() -> None:
    image = trial_image(record(), trial(1, violations={"kl_divergence <= 0.1": 0.05}))
    assert image.status == "FINISHED"
    assert image.name.endswith("breaks a constraint")
    assert image.tags["sweeper.state"] == "ruled out by kl_divergence"
    assert "breaks kl_divergence <= 0.1" in image.tags["mlflow.note.content"]


def test_the_view_leaves_out_what_a_constraint_rejects() -> None:
    bounds = (
        Constraint("kl_divergence", "<=", 0.1),
        Constraint("watts", "<=", 50),
        Constraint("watts", ">=", 1),
    )
    _, value = view_tag(record(constraints=bounds))
    packed = json.loads(value)["state"].removeprefix("deflate;")
    wanted = json.loads(zlib.decompress(base64.b64decode(packed)))["searchFilter"]
    assert wanted.count("!=") == 2
    for metric in ("kl_divergence", "watts"):
        state = trial_image(record(), trial(1, violations={f"{metric} <= 0.1": 0.05})).tags["sweeper.state"]
        assert f"tags.`sweeper.state` != '{state}'" in wanted


@pytest.mark.parametrize("state", ["running", "complete"])
def test_every_trial_has_the_tags_of_the_first_columns_from_the_start(state: str) -> None:
    swept = record(state)
    for one in swept.trials:
        tags = trial_image(swept, one).tags
        assert list(tags)[:3] == ["sweeper.pick", "sweeper.state", "sweeper.settings"]
    picks = [trial_image(swept, one).tags["sweeper.pick"] for one in swept.trials]
    assert ("within:5%" in " ".join(picks)) == (state == "complete")
    assert "–" in picks


def test_a_sweep_that_is_started_again_keeps_its_picks_until_it_has_others() -> None:
    ended, again = record(), replace(record(), state="running")
    for one in ended.trials:
        before, after = trial_image(ended, one).tags, trial_image(again, one).tags
        assert after == before
    new = trial_image(replace(again, trials=(), front=(), baseline=None, recommended=None), trial(8)).tags
    assert new["sweeper.pick"] == "–"
    assert "sweeper.front" not in new


def test_the_name_of_a_run_has_the_number_of_the_report() -> None:
    assert trial_image(record(), trial(1)).name.startswith("#1 · ")


def test_a_stopped_sweep_still_answers_first() -> None:
    text = describe(replace(record(), state="stopped", stopped_because="Ctrl-C"))
    assert text.index("sweeper apply") < text.index("**Run this**") < text.index("was stopped** (Ctrl-C)")
