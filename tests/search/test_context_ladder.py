"""The longest context: the default settings at each context first, until one breaks a limit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hurry import run_here

from sweeper.config import compose
from sweeper.metrics import FIRST_WHEN_FULL
from sweeper.records import Configuration, MachineRecord, ModelFile, ModelRecord, SweepRecord, Workload
from sweeper.results.assemble import assemble
from sweeper.results.contexts import default_at, rungs
from sweeper.rig.open import space_of
from sweeper.search.encoding import idle_for
from sweeper.search.study import SweepStudy
from sweeper.search.warm_start import context_ladder
from sweeper.space.auto import Facts
from sweeper.space.space import Traits, build_space

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MINI = ("engine=simulated", "engine.machine=minipc", "experiment=longest_context", "name=c", "search.seed=3")


FLOOR = 'objectives.constraints.tokens_per_second=">=9"'


def swept(tmp_path: Path) -> SweepRecord:
    return assemble(SweepStudy.load(tmp_path / "mlruns", "c"))


def test_the_default_settings_climb_until_memory_is_short(sweeper: Run, tmp_path: Path) -> None:
    words = ("space.n_ctx=[1024,4096,16384,32768]", "search.trials=6", "search.finalists=1")
    done = sweeper("sweep", *MINI, *words)
    assert done.returncode == 0, done.stderr
    record = swept(tmp_path)
    assert [c.n_ctx for c in record.ladder] == [1024, 4096, 16384, 32768]
    assert {c.with_(n_ctx=0) for c in record.ladder} == {record.ladder[0].with_(n_ctx=0)}
    assert [t.configuration for t in record.trials[:3]] == list(record.ladder[:3])
    assert [t.state for t in record.trials[:3]] == ["complete", "complete", "out_of_memory"]
    assert record.trials[3].configuration != record.ladder[3]
    assert record.baseline == 0
    for trial in record.trials[:2]:
        assert {"tokens_per_second", "watts", "memory_mib", FIRST_WHEN_FULL} <= trial.metrics.keys()
    assert "2 of 6 trials: #1  4096 tokens, " in done.stderr
    assert "± ? tokens" not in done.stderr
    assert ", first word after " in done.stderr


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of 14 trials whose floor the default settings break at the last context."""
    folder = tmp_path_factory.mktemp("floored")
    done = run_here("sweep", *MINI, FLOOR, "search.trials=14", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_floor_ends_the_climb_and_is_told_from_the_first_lines_on(
    floored: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = floored
    record = swept(folder)
    assert [c.n_ctx for c in record.ladder] == [1024, 2048, 4096, 8192]  # powers of two up to the training
    assert [t.configuration for t in record.trials[:4]] == list(record.ladder)
    assert [t.feasible for t in record.trials[:4]] == [True, True, True, False]
    first = done.stderr.index("1 of 14 trials")
    told = "constraints: quality lost (KL divergence) at most 0.1 nats/token, decode speed at least 9 tok/s"
    assert done.stderr.index(told) < first
    assert done.stderr.index("the default settings at 1,024 to 8,192 tokens") < first
    flat = " ".join(done.stdout.split())
    assert "With the default settings, 4,096 tokens is the longest context that keeps the constraints" in flat
    assert "default settings · breaks tokens_per_second >= 9" in flat
    assert "(recommended): longest context" in flat
    longest = max(t.configuration.n_ctx for t in record.trials if t.remeasured and t.feasible)
    assert record.trial(record.recommended or 0).configuration.n_ctx == longest


def test_programs_get_the_same_table(
    floored: tuple[Path, subprocess.CompletedProcess[str]], sweeper: Run
) -> None:
    folder, _ = floored
    rows = json.loads(sweeper("report", "c", "--json", cwd=folder).stdout)["contexts"]
    record = swept(folder)
    default = [row for row in rows if row["settings"] == "default"]
    assert [row["n_ctx"] for row in default] == [c.n_ctx for c in record.ladder]
    for row, trial in zip(default, record.trials, strict=False):
        assert row["trial"] == trial.number
        assert row["metrics"]["tokens_per_second"]["median"] == trial.metrics["tokens_per_second"].median
        assert row["metrics"][FIRST_WHEN_FULL]["median"] > trial.metrics["time_to_first_token_seconds"].median
    assert default[-1]["why_not"] == "breaks tokens_per_second >= 9"
    assert sum(row["recommended"] for row in rows) == 1


def test_the_pick_is_compared_with_the_default_settings_at_its_own_context(
    floored: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = floored
    record = swept(folder)
    pick = record.trial(record.recommended or 0)
    default = default_at(record, pick)
    assert default is not None
    assert default.configuration.n_ctx == pick.configuration.n_ctx > record.ladder[0].n_ctx
    assert default.remeasured
    flat = " ".join(done.stdout.split())
    assert f"{pick.configuration.n_ctx:,} tokens: " in flat
    assert "Percentages compare with the default settings at this context" in flat
    assert "compared with the baseline" not in flat


def test_a_climb_that_was_stopped_goes_on(sweeper: Run, tmp_path: Path) -> None:
    few = ("search.finalists=1", "search.sampler=random")
    assert sweeper("sweep", *MINI, *few, "search.trials=2").returncode == 0
    assert [t.configuration for t in swept(tmp_path).trials] == list(swept(tmp_path).ladder[:2])
    assert sweeper("sweep", *MINI, *few, "search.trials=9").returncode == 0
    record = swept(tmp_path)
    assert [t.configuration for t in record.trials[:4]] == list(record.ladder)
    assert len({t.configuration for t in record.trials}) == len(record.trials) == 9


def test_a_context_that_would_take_longer_than_is_left_is_not_begun(sweeper: Run, tmp_path: Path) -> None:
    done = sweeper("sweep", *MINI, "search.minutes=5", "search.finalists=1")
    assert done.returncode == 0, done.stderr
    record = swept(tmp_path)
    assert "tokens are not tried with the default settings: that would take about" in done.stderr
    assert done.stderr.count("are not tried with the default settings") == 1
    assert "not tried, because the time was over" in done.stdout
    assert rungs(record)[0].default is not None
    assert rungs(record)[-1].default is None


# -- its parts


def test_a_ladder_has_only_points_of_its_space() -> None:
    spec = {"n_ctx": [256, 1024, 4096], "n_batch": [64, 512, 2048], "n_threads": [1, 2]}
    space = build_space(spec, Configuration(), Traits(n_ctx_needed=600))
    ladder = context_ladder(space, Configuration(n_ctx=768, n_threads=2))
    assert [c.n_ctx for c in ladder] == [1024, 4096]  # 256 tokens are too few for the workload
    assert {c.n_threads for c in ladder} == {2}
    assert all(space.configuration(space.params_of(c)) == c for c in ladder)
    alone = build_space({"n_threads": [1, 2]}, Configuration(), Traits())
    assert context_ladder(alone, Configuration()) == ()


def test_the_servers_own_placement_stays_its_own_at_every_context() -> None:
    space = build_space({"n_ctx": [1024, 4096], "n_threads": [1, 2]}, Configuration(), Traits())
    own = space.configuration({"n_ctx": 1024, "n_threads": 1})
    space = replace(space, own_placement=own)
    ladder = context_ladder(space, Configuration(n_ctx=1024))
    assert [(c.n_ctx, c.fit) for c in ladder] == [(1024, True), (4096, True)]
    assert not space.configuration({"n_ctx": 4096, "n_threads": 2}).fit


MODEL = ModelRecord(
    "m", "llama", 10**9, 22, 8192, "synthetic", "F16", {"F16": ModelFile("F16", "m", "0", 2 * 10**9)}
)
FACTS = Facts(MachineRecord("f", "cpu", 4, 8, 16_000, "Linux"), MODEL, Workload(depth=None), False)


@pytest.mark.parametrize(
    ("train", "contexts"),
    [
        (8192, [1024, 2048, 4096, 8192]),
        (5000, [1024, 2048, 4096, 5000]),
        (1024, [1024]),
        (256, [768]),
        (0, [1024, 2048, 4096, 8192, 16384, 32768]),
    ],
)
def test_contexts_of_their_own_are_powers_of_two_up_to_the_training(train: int, contexts: list[int]) -> None:
    facts = replace(FACTS, model=replace(MODEL, n_ctx_train=train), longest_context=True)
    space, notes = space_of(compose(["experiment=longest_context", "space.n_batch=512"]), facts)
    if len(contexts) == 1:
        assert space.base.n_ctx == contexts[0]
        assert any(f"but {contexts[0]} tokens are the only context" in note for note in notes)
    else:
        assert list(space.parameters["n_ctx"].values) == contexts
        assert not any("only context" in note for note in notes)
    other, _ = space_of(compose(["workload=long_context"]), replace(facts, longest_context=False))
    assert "n_ctx" not in other.parameters


def test_a_full_context_makes_its_length_count_in_decode() -> None:
    assert "n_ctx" in idle_for("tokens_per_second")
    assert "n_ctx" not in idle_for("tokens_per_second", fills_context=True)
    assert "n_batch" in idle_for("tokens_per_second", fills_context=True)
