"""Starts programs for the race: wrappers that log each start, environments of pip, timed runs, llama-bench."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import NoAnswer, Rules
from picks import bench_words

from sweeper import files
from sweeper.servers import ServerProcess

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
NEEDED = ("llama-bench", "llama-server", "llama-perplexity")
WRAPPED = (*NEEDED, "llama-fit-params", "llama-quantize")
_QUESTIONS = {"--help", "-h", "--version", "--list-devices"}
_INSTALL_SECONDS = 1800.0
_BENCH_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Ran:
    """A program's run: its seconds, its exit code (None: cut at the cap) and its output, both streams in one."""

    seconds: float
    exit_code: int | None
    output: str


def write_wrappers(programs: Path, folder: Path) -> None:
    """Write a script for each program of llama.cpp. It logs its start to ``$RACE_LOG`` and becomes the program.

    Without llama-quantize, a stand-in does the same work with llama-cpp-python's library.

    Raises:
        NoAnswer: a program is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRAPPED:
        program = programs / name
        words = [str(program)]
        if not program.is_file():
            if name in NEEDED:
                raise NoAnswer(f"there is no {name} in {programs}: name llama.cpp's folder with --llama-bin")
            if name != "llama-quantize":
                continue
            words = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, str(HERE / "llama_quantize.py")]
        script = folder / name
        log = f'printf \'%s\\t%s\\n\' {name} "$*" >>"${{RACE_LOG:-/dev/null}}"'
        files.replace(script, f'#!/bin/sh\n{log}\nexec {shlex.join(words)} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def starts_in(folder: Path) -> tuple[dict[str, int], int]:
    """How often each program was started, and how many starts only asked for help, version or devices."""
    counts: Counter[str] = Counter()
    asks = 0
    log = folder / "starts.log"
    for line in log.read_text("utf-8", "replace").splitlines() if log.is_file() else ():
        program, _, arguments = line.partition("\t")
        if _QUESTIONS & set(arguments.split()):
            asks += 1
        else:
            counts[program] += 1
    return dict(counts), asks


def installed(rules: Rules, requirement: str) -> tuple[Path, tuple[str, ...]]:
    """The folder of commands of an environment with this requirement, made once, and the packages in it.

    Raises:
        NoAnswer: pip failed.
    """
    folder = rules.work / "environments" / requirement.replace("==", "-")
    python, listed = folder / "bin" / "python", folder / "packages.txt"
    if not listed.is_file():
        log = folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        for words in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", requirement],
        ):
            ran = timed(words, log, {}, _INSTALL_SECONDS)
            if ran.exit_code != 0:
                raise NoAnswer(f"cannot install {requirement}: {last_line(ran.output)} (whole output: {log})")
        freeze = [str(python), "-m", "pip", "freeze"]
        files.replace(listed, subprocess.run(freeze, capture_output=True, text=True, check=True).stdout)
    return folder / "bin", tuple(listed.read_text("utf-8").split())


def timed(words: Sequence[str], log: Path, environment: Mapping[str, str | None], cap_seconds: float) -> Ran:
    """Run a program to its end, or end it and its children after ``cap_seconds``."""
    began = time.monotonic()
    running = ServerProcess(words, log, environment)
    try:
        code: int | None = running.process.wait(cap_seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        seconds = time.monotonic() - began
        running.end()
    return Ran(seconds, code, log.read_text("utf-8", "replace"))


def last_line(output: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def bench(
    program: Path,
    model: str,
    options: Mapping[str, Any],
    *,
    prompt: int = 0,
    generated: int = 0,
    depth: int = 0,
    repeats: int = 1,
    environment: Mapping[str, str | None] | None = None,
) -> float:
    """Prefill or decode speed by one start of llama-bench, in tok/s: ``prompt`` or ``generated`` tokens at ``depth``.

    Raises:
        NoAnswer: llama-bench failed, or gave no figure.
    """
    phase = "prefill" if prompt else "decode"
    words = [str(program), "-m", model, "-p", str(prompt), "-n", str(generated), "-d", str(depth)]
    words += ["-r", str(repeats), "-o", "json", *bench_words(options, phase)]
    variables = {k: v for k, v in (os.environ | dict(environment or {})).items() if v is not None}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_BENCH_SECONDS, env=variables, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"llama-bench took more than {_BENCH_SECONDS:g} s: {shlex.join(words)}") from None
    if done.returncode != 0:
        raise NoAnswer(
            f"llama-bench ended with {done.returncode}: {last_line(done.stderr)}: {shlex.join(words)}"
        )
    try:
        return float(json.loads(done.stdout)[-1]["avg_ts"])
    except (ValueError, LookupError):
        raise NoAnswer(f"llama-bench printed no figure: {shlex.join(words)}") from None
