"""A job of two or three minutes searches no level whose quality it would have to measure first."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from bare_rig import rig_of

from sweeper.config import Composed, compose
from sweeper.model import quality
from sweeper.records import Configuration
from sweeper.rig.quantisations import with_quality, with_quantisations
from sweeper.rig.short_job import in_time
from sweeper.space.space import SearchSpace, Traits, build_space

SPEC = {"quant": ["F16", "Q8_0", "Q4_0"], "type_k": ["f16", "q8_0"], "n_threads": [1, 2]}
LEVELS = ("quant", "type_k")


@pytest.fixture
def space() -> SearchSpace:
    return build_space(SPEC, Configuration(n_ctx=1024, quant="F16"), Traits())


def composed(root: Path, *words: str) -> Composed:
    """The configuration of a command line with these words."""
    return replace(compose(["model.path=x.gguf", f"root='{root}'", *words]), typed=words)


def values(space: SearchSpace) -> dict[str, tuple[str, ...]]:
    return {name: space.parameters[name].values for name in LEVELS if name in space.parameters}


@pytest.mark.parametrize(
    ("minutes", "time"), [("2", "2 minutes"), ("1", "1 minute"), ("150s", "2.5 minutes")]
)
def test_levels_that_were_never_compared_leave_the_space(
    nano: Path, tmp_path: Path, space: SearchSpace, minutes: str, time: str
) -> None:
    left, notes = in_time(rig_of(nano, tmp_path), space, composed(tmp_path, f"minutes={minutes}"))
    assert set(left.parameters) == {"n_threads"}
    assert (left.base.quant, left.base.type_k) == ("F16", "f16")
    assert notes == (
        f"quant and type_k are not searched: there is no time in {time} to measure the quality of other levels; "
        "give minutes=4 or more, or name the values with space.quant=…",
    )
    assert not (tmp_path / "quantised").exists()


QUALITY_ASKED = (
    ("minutes=2", "objectives.constraints.kl_divergence='<=0.05'"),
    ("minutes=2", "objectives.constraints={kl_divergence: '<=0.05'}"),
    ("minutes=2", "objectives.targets={tokens_per_second: maximize, kl_divergence: minimize}"),
)


@pytest.mark.parametrize("words", [(), ("minutes=4",), ("search.minutes=2",), *QUALITY_ASKED])
def test_with_more_time_or_where_quality_is_asked_for_all_stay(
    nano: Path, tmp_path: Path, space: SearchSpace, words: tuple[str, ...]
) -> None:
    assert in_time(rig_of(nano, tmp_path), space, composed(tmp_path, *words)) == (space, ())


def test_without_a_bound_on_quality_nobody_asks_for_it(
    nano: Path, tmp_path: Path, space: SearchSpace
) -> None:
    words = ("minutes=2", "objectives.constraints.kl_divergence=null")
    assert not values(in_time(rig_of(nano, tmp_path), space, composed(tmp_path, *words))[0])


def test_values_that_the_user_typed_stay(nano: Path, tmp_path: Path, space: SearchSpace) -> None:
    rig = rig_of(nano, tmp_path)
    left, notes = in_time(rig, space, composed(tmp_path, "minutes=2", "space.quant=[F16,Q8_0,Q4_0]"))
    assert values(left) == {"quant": ("F16", "Q8_0", "Q4_0")}
    assert notes[0].startswith("type_k is not searched: there is no time in 2 minutes")
    both = composed(tmp_path, "minutes=2", "space.quant=[F16,Q8_0,Q4_0]", "space.type_k=[f16,q8_0]")
    assert in_time(rig, space, both) == (space, ())


def test_what_was_compared_before_stays_and_is_not_measured_again(
    nano: Path, tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = rig_of(nano, tmp_path)
    little = composed(tmp_path, "model.quality_tokens=512").settings
    rig, _ = with_quantisations(bare, space, tmp_path, lambda _: None)
    with ExitStack() as held:
        measured = with_quality(rig, space, little, tmp_path, held, lambda _: None)
        found = measured.quality(space.base.with_(quant="Q8_0"))
    short = composed(tmp_path, "minutes=2")
    left, notes = in_time(bare, space, short)
    assert values(left) == {"quant": ("F16", "Q8_0")}
    assert notes[0].startswith(
        "type_k is not searched; quant is searched only for F16, Q8_0: there is no time "
    )
    rig, left = with_quantisations(bare, left, tmp_path, lambda _: None)
    monkeypatch.setattr(quality.QualityMeter, "ask", lambda *_, **__: pytest.fail("a model ran"))
    with ExitStack() as held:  # although the short job has time for more text
        rig = with_quality(rig, left, short.settings, tmp_path, held, lambda _: None)
        assert rig.quality(left.base.with_(quant="Q8_0")) == found


def test_a_level_of_two_kept_values_that_was_never_compared_itself_is_left_out(
    nano: Path, tmp_path: Path, space: SearchSpace
) -> None:
    bare = rig_of(nano, tmp_path)
    little = composed(tmp_path, "model.quality_tokens=512").settings
    rig, _ = with_quantisations(bare, space, tmp_path, lambda _: None)
    with ExitStack() as held:
        measured = with_quality(rig, space, little, tmp_path, held, lambda _: None)
        for kept in ({"quant": "Q4_0"}, {"type_k": "q8_0"}):
            measured.quality(space.base.with_(**kept))
    left, _ = in_time(bare, space, composed(tmp_path, "minutes=2"))
    assert values(left) == {"quant": ("F16", "Q4_0")}  # with type_k, Q4_0 would need a comparison with q8_0


def test_a_rig_that_makes_no_quantisations_says_so_itself(
    nano: Path, tmp_path: Path, space: SearchSpace
) -> None:
    rig = replace(rig_of(nano, tmp_path), makes_quantisations=False)
    left, notes = in_time(rig, space, composed(tmp_path, "minutes=2"))
    assert notes[0].startswith("type_k is not searched: ")
    rig, left = with_quantisations(rig, left, tmp_path, lambda _: None)
    assert set(left.parameters) == {"n_threads"}
    assert rig.notes[0].startswith("quant is not searched for Q8_0, Q4_0: llama-cpp-python")


def test_a_rig_that_cannot_measure_quality_keeps_its_space(
    nano: Path, tmp_path: Path, space: SearchSpace
) -> None:
    rig = replace(rig_of(nano, tmp_path), measures_quality=False)
    assert in_time(rig, space, composed(tmp_path, "minutes=2")) == (space, ())


def test_where_the_users_own_file_is_not_the_most_precise_one_the_baseline_is_not_compared(
    nano: Path, nano_q4: Path, tmp_path: Path
) -> None:
    rig = rig_of(nano_q4, tmp_path)
    precise = rig_of(nano, tmp_path).model.file(None)
    rig = replace(rig, model=replace(rig.model, files={**rig.model.files, "F16": precise}))
    space = build_space({"quant": ["Q4_K_M", "F16"]}, Configuration(n_ctx=1024, quant="Q4_K_M"), Traits())
    left, _ = in_time(rig, space, composed(tmp_path, "minutes=2"))
    assert not left.parameters
    assert left.base.quant == "Q4_K_M"
