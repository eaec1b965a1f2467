"""Which kinds of speculation a sweep searches: those that have something to draft from, and that the server lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sweeper.client.prompt_file import BUNDLED, bundled_prompts
from sweeper.config import compose
from sweeper.errors import ConfigError, SpaceError
from sweeper.measure.trial import NO_DRAFT, metrics_of
from sweeper.parameters import SPECULATION, Configuration
from sweeper.records import (
    DraftModel,
    Drafts,
    EnergyReading,
    MachineRecord,
    ModelFile,
    ModelRecord,
    PowerSource,
    PromptFile,
    Window,
    Workload,
)
from sweeper.report.words import prompts_in_words
from sweeper.search.warm_start import initial_design
from sweeper.space.auto import Facts, fill_auto
from sweeper.space.space import Traits, build_space
from sweeper.space.speculation import LENGTHS, NGRAMS, speculates

FILE = ModelFile("F16", "m.gguf", "0" * 64, 10**9)
MODEL = ModelRecord("m", "llama", 10**9, 22, 4096, "file", "F16", {"F16": FILE})
OWN = PromptFile("p.jsonl", "1" * 64, 10, 0)
AUTO = {"spec_type": "auto", "spec_draft_n_max": "auto"}


def facts(
    source: str = "file",
    draft: str | None = None,
    mtp_layers: int = 0,
    prompts: PromptFile | None = None,
    listed: tuple[str, ...] | None = None,
    engine: str = "llama_server",
) -> Facts:
    model = replace(
        MODEL,
        source=source,
        mtp_layers=mtp_layers,
        draft=None if draft is None else DraftModel(FILE, draft),
    )
    machine = MachineRecord("f", "cpu", 4, 8, 16_000, "Linux")
    kinds = None if listed is None else frozenset(listed)
    return Facts(machine, model, Workload(prompts=prompts), False, engine=engine, speculation=kinds)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, ["none"]),
        ({"draft": "draft-simple"}, ["none", "draft-simple"]),
        ({"draft": "draft-eagle3"}, ["none", "draft-eagle3"]),
        ({"mtp_layers": 1}, ["none", "draft-mtp"]),
        ({"mtp_layers": 1, "draft": "draft-mtp"}, ["none", "draft-mtp"]),
        ({"mtp_layers": 1, "draft": "draft-simple"}, ["none", "draft-simple", "draft-mtp"]),
        ({"prompts": OWN}, ["none", *NGRAMS]),
        ({"prompts": OWN, "listed": ("none", "draft-simple", "ngram-mod")}, ["none", "ngram-mod"]),
        ({"source": "synthetic", "prompts": OWN, "mtp_layers": 1}, ["none"]),
    ],
)
def test_auto_tries_what_has_something_to_draft_from(given: dict[str, Any], kinds: list[str]) -> None:
    filled, notes = fill_auto(AUTO, facts(**given))
    assert filled["spec_type"] == (kinds if len(kinds) > 1 else "none")
    has_draft = any(kind.startswith("draft") for kind in kinds)
    assert filled["spec_draft_n_max"] == (list(LENGTHS) if has_draft else 3)
    assert notes == ()


def test_a_kind_that_this_server_does_not_list_leaves_the_space_with_one_line() -> None:
    listed = ("none", "ngram-mod")
    filled, notes = fill_auto(AUTO, facts(draft="draft-simple", listed=listed))
    assert filled == {"spec_type": "none", "spec_draft_n_max": 3}
    assert notes == ("spec_type is not searched for draft-simple: this llama-server does not list it",)
    filled, notes = fill_auto({"spec_type": ["none", "ngram-mod", "ngram-cache"]}, facts(listed=listed))
    assert filled == {"spec_type": ["none", "ngram-mod"]}
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("wanted", "given", "says"),
    [
        ("draft-simple", {}, "draft-simple needs a draft model: set model.draft=FILE"),
        (
            ["none", "draft-eagle3"],
            {"draft": "draft-simple"},
            "model.draft is for draft-simple, and not for draft-",
        ),
        (
            "draft-mtp",
            {"draft": "draft-simple"},
            "draft-mtp needs a model with MTP layers, and this one has none",
        ),
        (
            ["none", "ngram-mod"],
            {"source": "synthetic"},
            "this model's weights are random, so the share of drafts",
        ),
    ],
)
def test_a_kind_that_cannot_work_is_refused_with_one_line(
    wanted: Any, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpaceError) as caught:
        fill_auto({"spec_type": wanted}, facts(**given))
    assert str(caught.value).startswith("space.spec_type: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_that_is_no_kind_is_refused_by_the_space() -> None:
    filled, _ = fill_auto({"spec_type": "mtp"}, facts())
    with pytest.raises(SpaceError, match=r"space\.spec_type: 'mtp' is not one of none"):
        build_space(filled, Configuration(), Traits(engine="llama_server"))


def test_a_draft_that_is_not_used_is_said() -> None:
    found = facts(draft="draft-simple")
    for spec in ({"spec_type": "none"}, {"spec_type": ["none", "ngram-mod"]}, {}):
        _, notes = fill_auto(spec, found)
        assert notes == ("model.draft is not used: space.spec_type does not name draft-simple",)
    old = replace(found, options=frozenset({"threads"}))
    _, notes = fill_auto(AUTO, old)
    assert notes == ("model.draft is not used: this llama-server has no option --spec-type",)


def test_only_llama_server_takes_a_draft() -> None:
    with pytest.raises(ConfigError, match=r"model\.draft: only engine=llama_server can use a draft model"):
        compose(["model.path=m.gguf", "model.draft=d.gguf"])
    assert (
        compose(["engine=llama_server", "model.path=m.gguf", "model.draft=d.gguf"]).settings.model.draft
        == "d.gguf"
    )


def test_a_draft_is_tried_right_after_the_baseline() -> None:
    spec = {
        "spec_type": ["none", "ngram-mod", "draft-simple"],
        "spec_draft_n_max": [1, 3, 8],
        "n_threads": [1, 2],
    }
    space = build_space(spec, Configuration(), Traits(engine="llama_server"))
    first = initial_design(space, space.base, 6, 0)
    assert [c.spec_type for c in first[:2]] == ["none", "draft-simple"]
    assert first[1].spec_draft_n_max == 3
    assert speculates(space)
    assert not speculates(build_space({"n_threads": [1, 2]}, Configuration(), Traits()))
    assert speculates(build_space({"spec_type": "ngram-mod"}, Configuration(), Traits(engine="llama_server")))


def test_the_bundled_text_is_said_to_be_it() -> None:
    texts = bundled_prompts()
    assert len(texts.prompts) == texts.record.prompts > 10
    assert all(isinstance(text, str) and len(text) <= 300 for text in texts.prompts)
    words = prompts_in_words(Workload(prompt_tokens=512, prompts=texts.record))
    assert words.startswith("512 prompt tokens, generation after one of ")
    assert BUNDLED in words
    assert texts.record.sha256[:12] in words


SOURCE = PowerSource("x", "x", "gpu", "measured")


def window(drafts: Drafts | None, depth: int = 0) -> Window:
    return Window("decode", 0, 10, 1.0, EnergyReading(SOURCE, 1.0, 5.0), depth=depth, drafts=drafts)


def test_the_share_of_accepted_drafts_is_a_median_of_windows() -> None:
    told = [Drafts(10, 9), Drafts(0, 0), Drafts(40, 40), Drafts(20, 19), Drafts(8, 0)]
    metrics, missing = metrics_of([*map(window, told), window(Drafts(10, 0), depth=512)], Workload())
    reading = metrics["draft_acceptance"]
    assert reading.median == pytest.approx(0.925)
    assert (reading.n, reading.high) == (4, 1.0)  # no share is above 1, however wide the interval
    assert "draft_acceptance" not in missing
    metrics, missing = metrics_of([window(Drafts(0, 0))], Workload())
    assert missing["draft_acceptance"] == NO_DRAFT
    for trial in (metrics_of([window(None)], Workload()), (metrics, {})):
        assert "draft_acceptance" not in {**trial[0], **trial[1]}


def test_every_kind_is_known_to_the_space() -> None:
    assert set(NGRAMS) < set(SPECULATION)
