"""The race of benchmarks/race: what it reads from its contestants' output, and what it makes of the judge's figures."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "race"))

import by_fituna
import by_llama_dyno
import by_llama_mdl
import by_llama_optimus
from by_grid import candidates, points
from by_sweeper import first_usable, printed
from contest import Claim, NoAnswer, Outcome, Pick, Rules
from judge import Judge, entrants_of
from picks import (
    bench_words,
    changes_quality,
    in_effect,
    options_of_configuration,
    options_of_words,
    server_words,
)
from programs import Ran, starts_in, write_wrappers
from table import document, markdown

from sweeper.parameters import Configuration
from sweeper.records import (
    EngineRecord,
    MachineRecord,
    ModelFile,
    ModelRecord,
    Objective,
    PowerSource,
    Reading,
    SweepRecord,
    TrialRecord,
    Workload,
    from_plain,
    to_plain,
)

MODEL = "/models/m.gguf"
BEGAN = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    return Rules(
        model=model,
        programs=tmp_path,
        wrappers=tmp_path / "llama.cpp",
        work=tmp_path,
        text=tmp_path / "text.txt",
        runs=2,
        cap_seconds=60.0,
        prompt_tokens=100,
        generated_tokens=50,
        client_tokens=32,
        n_ctx=1024,
        depth=64,
        judge_rounds=3,
        grid_seconds=1.0,
        grid_passes=1,
        kld_chunks=1,
        target=None,
        precise_model=None,
    )


# -- picks


def test_options_survive_the_way_to_llama_server_and_back() -> None:
    options = {
        "n_threads": 2,
        "n_threads_batch": 1,
        "n_batch": 512,
        "n_ubatch": 64,
        "flash_attn": False,
        "type_k": "q8_0",
        "type_v": "f16",
        "repack": False,
        "fit": False,
        "use_mmap": True,
        "use_mlock": False,
        "override_tensor": r"blk\.\d+\.ffn_.*_exps\.=CPU",
    }
    assert options_of_words(["llama-server", "-m", MODEL, *server_words(options)]) == options


def test_defaults_and_what_the_judge_sets_leave_no_option() -> None:
    words = [
        "llama-server",
        "-m",
        "x.gguf",
        "-c",
        "2048",
        "-np",
        "4",
        "-fa",
        "auto",
        "-ngl",
        "auto",
        "--port",
        "8080",
        "--metrics",
    ]
    assert options_of_words(words) == {}


def test_llama_bench_gets_the_threads_of_the_phase() -> None:
    options = {
        "n_threads": 1,
        "n_threads_batch": 2,
        "flash_attn": True,
        "type_k": "q8_0",
        "op_offload": False,
    }
    assert bench_words(options, "decode") == ["-t", "1", "-fa", "on", "-ctk", "q8_0", "-nopo", "1"]
    assert bench_words(options, "prefill")[:2] == ["-t", "2"]
    assert bench_words({"n_threads": 1}, "prefill") == ["-t", "1"]  # batch threads are the threads by default
    assert bench_words({}, "prefill") == []


def test_picks_that_run_alike_look_alike() -> None:
    def found(**options: object) -> object:
        return in_effect(options, cores=2, has_gpu=False, prompt_tokens=512)

    assert found() == found(
        n_threads=2, n_batch=16384, n_ubatch=512, n_gpu_layers=99, fit=False, use_mmap=True
    )
    assert found(n_batch=64) == found(n_batch=64, n_ubatch=64)
    assert found(n_batch=64) != found()
    assert found(n_threads=1) != found()
    assert in_effect({"n_gpu_layers": 9}, 2, has_gpu=True) != in_effect({}, 2, has_gpu=True)


def test_a_configuration_of_sweeper_gives_the_options_of_its_command() -> None:
    configuration = Configuration(n_threads=2, n_ubatch=64, type_k="q8_0", n_ctx=2048, quant="F16")
    options = options_of_configuration(configuration.to_dict())
    assert options["n_threads"] == 2
    assert options["type_k"] == "q8_0"
    assert not {"n_ctx", "quant", "use_mmap"} & set(options)
    assert changes_quality(options)
    assert not changes_quality({"type_k": "f16"})


# -- contestants


def ran(output: str, code: int | None = 0) -> Ran:
    return Ran(1.0, code, output)


def trial_line(speed: float, params: dict[str, object]) -> str:
    return f"[I 2026-11-27] Trial 0 finished with value: {speed} and parameters: {params}. Best is trial 0.\n"


OPTIMUS = (
    "[I 2026-11-27] A new study created in memory with name: no-name-1\n"
    + trial_line(40.5, {"batch": 900, "u_batch": 77, "threads": 2, "gpu_layers": 5})
    + trial_line(41.5, {"flash_attn": 1, "override_tensor": "none"})
    + trial_line(39.0, {"batch": 10, "u_batch": 7, "threads": 1, "gpu_layers": 5})
)
OPTIMUS_END = """\
Best Stage_3 tg tokens/sec: 42.25

LLAMA_BIN=/race/llama.cpp
MODEL=/models/m.gguf

 $LLAMA_BIN/llama-server --model $MODEL -t 2 --batch-size 900 --ubatch-size 77 -ngl 5 --flash-attn \n
"""


def test_llama_optimus(rules: Rules) -> None:
    answer = by_llama_optimus.answer(ran(OPTIMUS + OPTIMUS_END), rules)
    assert answer is not None
    assert answer.options == {
        "n_threads": 2,
        "n_batch": 900,
        "n_ubatch": 77,
        "n_gpu_layers": 5,
        "flash_attn": True,
    }
    assert answer.claim is not None
    assert answer.claim.tokens_per_second == 42.25
    assert answer.command is not None
    assert answer.command.startswith("LLAMA_BIN=/race/llama.cpp\nMODEL=")


def test_a_cut_llama_optimus_has_its_best_trial_with_the_numbers_of_the_stage_before(rules: Rules) -> None:
    answer = by_llama_optimus.answer(ran(OPTIMUS, None), rules)
    assert answer is not None
    assert answer.command is None
    assert answer.options == {
        "n_batch": 900,
        "n_ubatch": 77,
        "n_threads": 2,
        "n_gpu_layers": 5,
        "flash_attn": True,
    }
    assert by_llama_optimus.answer(ran(OPTIMUS, 1), rules) is None
    assert by_llama_optimus.answer(ran("", None), rules) is None


DYNO = """\
 #  ngl  fa  ctk/ctv  batch  threads  pp t/s  tg t/s     ±  score  status
 1   99   ✓  f16/f16    512     auto   900.5    45.1  ±1.2  301.7    OK
 2   99   ✓  f16/f16   2048        2   950.5    44.1     -  316.0    OK
 3   99   ✓  f16/f16     64        2       -       -     -      -    ERR
✓ Tuning complete!
╭── 🏆 Best Config ──╮
│ Winning Config:    │
│   ngl=99, fa=✓     │
│   ctk=f16, ctv=f16 │
│   batch=2048, ubatch=512 │
│   threads=2        │
╰────────────────────╯

Next: dyno bench /models/m.gguf --ngl 99 --fa --ctk f16 --ctv f16 --batch 2048 --ubatch 512 --threads 2
"""


def test_llama_dyno(rules: Rules) -> None:
    answer = by_llama_dyno.answer(ran(DYNO), rules)
    assert answer is not None
    assert answer.options["n_batch"] == 2048
    assert answer.options["n_threads"] == 2
    assert answer.options["flash_attn"] is True
    assert answer.claim is not None
    assert answer.claim.tokens_per_second == 44.1  # of the best score, and not the best decode
    assert answer.command is not None
    assert answer.command.endswith("--threads 2")
    assert by_llama_dyno.answer(ran("ERROR: llama-bench not found in PATH.", 1), rules) is None


def test_llama_dyno_is_not_led_to_another_llama_cpp(rules: Rules) -> None:
    with pytest.raises(NoAnswer, match="choose another --work"):
        by_llama_dyno.words(dataclasses.replace(rules, wrappers=Path("/home/mike/llama.cpp")), Path())


MDL = """\
m.gguf                                       gemma3 · dense · 0.2 G
profile   speed  (ctx ≥ 8k)

 #  ctx   kv          offload   ub    VRAM          RAM     decode 0/0     prefill   s/turn
 1  32k   f16         all CPU   512   0.0 / 0.0     0.9 G   47 / 46 t/s    900 t/s   20 s
 2  32k   q8_0        all CPU   512   0.0 / 0.0     0.8 G   48 / 45 t/s    900 t/s   20 s

llama-server -m /models/m.gguf -ngl 0 -c 32768 -fa on -ctk f16 -ctv f16 -np 1 -b 2048 -ub 512 -fit off --metrics
"""


def test_llama_mdl(rules: Rules) -> None:
    answer = by_llama_mdl.answer(ran(MDL), rules)
    assert answer is not None
    assert answer.options["n_ubatch"] == 512
    assert answer.options["fit"] is False
    assert answer.claim == Claim(47.0, "llama-bench", "computed, printed without decimals")
    assert by_llama_mdl.answer(ran("nothing fits. no room.\n"), rules) is None


FITUNA = """\
FiTuna result: MEETS TARGET

  quant           : Q6_K
  ngl             : 0
  ctx             : 2048

  prompt tok/s (pp): 800.10
  gen tok/s    (tg): 43.21

  artifact: /w/out/m-F16-123-Q6_K.gguf  (1 MB -- already produced during the search)

  1) local API server (OpenAI-compatible):
       /w/llama.cpp/llama-server -m /w/out/m-F16-123-Q6_K.gguf -ngl 0 -c 2048 --port 8080
"""


def test_fituna(rules: Rules) -> None:
    answer = by_fituna.answer(ran(FITUNA), rules)
    assert answer is not None
    assert answer.options == {"n_gpu_layers": 0}
    assert answer.model == "/w/out/m-F16-123-Q6_K.gguf"
    assert answer.notes == ("quant Q6_K",)
    effort = by_fituna.answer(ran(FITUNA, 3), rules)
    assert effort is not None
    assert effort.notes[1] == "its best effort, below the target"
    with pytest.raises(NoAnswer, match="needs a target speed"):
        by_fituna.words(rules, Path())


def test_the_command_of_sweeper_is_the_one_of_this_model_alone() -> None:
    output = """\
checking
{"trial": 3, "commands": [{"argv": ["llama-server", "--models-preset", "x"], "environment": {}},
 {"argv": ["llama-server", "--model", "/a b.gguf"], "environment": {"OMP_WAIT_POLICY": "passive"}}]}
note: more
"""
    assert printed(ran(output)) == ("OMP_WAIT_POLICY=passive llama-server --model '/a b.gguf'", 3)
    assert printed(ran("no such sweep", 2)) is None


def test_the_grid_pairs_points_of_the_same_cache(rules: Rules) -> None:
    decode, prefill = points(cores=1, logical=2)
    found = {point: 10.0 * point.threads for point in decode}
    found |= {point: 100.0 * point.threads + (point.ubatch or 0) for point in prefill}
    lossy = next(point for point in decode if point.threads == 2 and point.cache == "q8_0")
    quick = next(
        point for point in prefill if point.threads == 1 and point.cache == "f16" and not point.flash
    )
    found[lossy], found[quick] = 30.0, 5000.0
    first, *others = candidates(decode, prefill, found, rules)
    assert (first["n_threads"], first["type_k"], first["type_v"]) == (2, "q8_0", "q8_0")
    assert (first["n_threads_batch"], first["n_ubatch"]) == (2, 1024)
    best_request = others[-1]  # 100 tokens of prefill and 50 of decode: reading fast is worth more
    assert best_request["flash_attn"] is False
    assert best_request["n_threads_batch"] == 1


# -- programs


def test_wrappers_log_each_start_and_become_the_program(tmp_path: Path) -> None:
    programs, wrappers = tmp_path / "it's here", tmp_path / "wrappers"
    programs.mkdir()
    for name in ("llama-bench", "llama-server", "llama-perplexity"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
        (programs / name).chmod(0o755)
    write_wrappers(programs, wrappers)
    environment = {**os.environ, "RACE_LOG": str(tmp_path / "starts.log")}
    for words in (["-m", "a b"], ["--version"]):
        done = subprocess.run(
            [str(wrappers / "llama-bench"), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 7
        assert done.stdout == "".join(f"{word}|" for word in words)
    assert starts_in(tmp_path) == ({"llama-bench": 1}, 1)
    (programs / "llama-server").unlink()
    with pytest.raises(NoAnswer, match="there is no llama-server"):
        write_wrappers(programs, wrappers)


# -- the judge's figures


def outcome(rules: Rules, name: str, run: int = 1, **options: object) -> Outcome:
    pick = Pick(str(rules.model), options)
    return Outcome(name, run, "answered", 10.0 * run, pick, "llama-server -m x", launches={"llama-bench": 3})


def test_equal_picks_are_one_entrant_and_the_baseline_is_there(rules: Rules) -> None:
    judge = Judge(rules, cores=2, has_gpu=False, say=lambda _: None)
    copy = rules.work / "copy.gguf"
    copy.write_bytes(b"weights")
    same = dataclasses.replace(outcome(rules, "b"), pick=Pick(str(copy), {"n_threads": 2, "n_gpu_layers": 7}))
    other = outcome(rules, "c", n_threads=1)
    found = entrants_of(judge, [(outcome(rules, "a"), "speed"), (same, "speed"), (other, "speed")])
    assert len(found) == 2


def test_regret_is_the_ratio_within_rounds_to_the_best_of_the_grid(rules: Rules) -> None:
    judge = Judge(rules, cores=2, has_gpu=False, say=lambda _: None)
    grid = dataclasses.replace(
        outcome(rules, "grid", n_threads=2), also=(Pick(str(rules.model), {"n_threads": 2, "n_ubatch": 64}),)
    )
    slow = dataclasses.replace(outcome(rules, "slow", n_threads=1), claim=Claim(99.0, "client", "measured"))
    broken = outcome(rules, "broken", n_batch=8)
    outcomes = [
        (grid, "speed"),
        (slow, "speed"),
        (outcome(rules, "slow", 2, n_threads=1), "speed"),
        (broken, "speed"),
    ]
    first, second, bad, refused = (
        judge.key(pick, "speed") for pick in (grid.pick, grid.also[0], slow.pick, broken.pick) if pick
    )

    def figures(decode: float, prefill: float) -> dict[str, float]:
        return {"bench_decode": decode, "bench_prefill": prefill, "client_decode": 0.9 * decode}

    # The machine slows down from round to round, which no ratio shows.
    rounds = [
        {
            first: figures(100 * speed, 1000 * speed),
            second: figures(50 * speed, 500 * speed),
            bad: figures(80 * speed, 1000 * speed),
            refused: {"error": "llama-bench ended with 1"},
        }
        for speed in (1.0, 0.7, 0.5)
    ]
    found = document(judge, outcomes, rounds, {bad: 0.25}, {"llama-server -m x": "yes", None: "none printed"})
    runs = found["contestants"]["slow"]["runs"]
    assert runs[0]["regret"]["bench_decode"]["median"] == pytest.approx(0.2)
    assert runs[0]["regret"]["bench_decode"]["low"] == pytest.approx(0.2)
    assert runs[0]["regret"]["request"]["median"] == pytest.approx(1 - (0.1 + 0.5) / (0.1 + 0.625))
    assert runs[0]["claimed_to_judged"] == pytest.approx(99.0 / (0.9 * 80 * 0.7))
    assert found["contestants"]["slow"]["same_pick_runs"] == 2
    assert found["contestants"]["grid"]["runs"][0]["regret"]["client_decode"]["median"] == 0
    assert found["contestants"]["broken"]["runs"][0]["error"] == "llama-bench ended with 1"
    assert found["truth"]["bench_decode"]["options"] == {"n_threads": 2}
    shown = markdown(found)
    assert "| slow | 15 (10 to 20) | 3 |" in shown
    assert "20.0% (20.0% to 20.0%)" in shown
    assert "| 2 of 2 |" in shown
    assert "- broken, run 1: batch-size 8; llama-bench ended with 1" in shown


def test_without_a_grid_there_is_no_regret(rules: Rules) -> None:
    judge = Judge(rules, cores=2, has_gpu=False, say=lambda _: None)
    failed = Outcome("failed", 1, "failed", 3.0, reason="it crashed")
    found = document(judge, [(failed, "speed")], [{}], {}, {None: "none printed"})
    assert found["truth"] == {"bench_decode": None, "client_decode": None, "request": None}
    assert "1 of 1 failed" in markdown(found)
    assert "- failed, run 1: no pick; it crashed" in markdown(found)


def test_an_outcome_survives_its_file(rules: Rules) -> None:
    kept = dataclasses.replace(
        outcome(rules, "a", type_k="q8_0", flash_attn=True),
        claim=Claim(1.5, "client", "measured"),
        notes=("x",),
    )
    rules.keep(kept)
    assert rules.outcome("a", 1) == kept
    assert rules.outcome("a", 2) is None
    assert from_plain(to_plain(kept), Outcome) == kept


def screened(*rows: tuple[int, float, str, float]) -> SweepRecord:
    """A sweep of trials: threads, tok/s, state, seconds; each begins where the one before ended."""
    trials, now = [], BEGAN + timedelta(seconds=20)
    for number, (threads, speed, state, seconds) in enumerate(rows):
        figures = (
            {"tokens_per_second": Reading(speed, 0.99 * speed, 1.01 * speed, 3)}
            if state == "complete"
            else {}
        )
        configuration = Configuration(n_threads=threads, n_threads_batch=threads)
        trials.append(
            TrialRecord(number, state, configuration, figures, started_utc=now.isoformat(), seconds=seconds)
        )
        now += timedelta(seconds=seconds)
    return SweepRecord(
        sweep="race",
        state="running",
        machine=MachineRecord("f", "cpu", 2, 2, 8192, "6.1"),
        engine=EngineRecord("llama_server", "1"),
        model=ModelRecord("m", "llama", 1, 2, 2048, "file", "F16", {"F16": ModelFile("F16", MODEL, "", 1)}),
        workload=Workload(),
        objectives=(Objective("tokens_per_second", "maximize"),),
        constraints=(),
        power=PowerSource("none", "", "custom", "none"),
        space={},
        trials=tuple(trials),
        front=(),
        baseline=0,
        recommended=None,
        pick="fastest",
    )


def test_the_first_usable_pick_comes_with_the_second_valid_trial() -> None:
    found = first_usable(
        screened((2, 40.0, "complete", 5), (4, 0.0, "failed", 3), (1, 44.0, "complete", 4)), BEGAN
    )
    assert found is not None
    assert found.seconds == pytest.approx(20 + 5 + 3 + 4)
    assert found.pick.model == MODEL
    assert found.pick.options["n_threads"] == 1
    assert first_usable(screened((2, 40.0, "complete", 5), (4, 0.0, "failed", 3)), BEGAN) is None
