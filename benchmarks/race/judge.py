"""Judges every pick by the same rulers, in rounds in random order, with llama.cpp's defaults among them.

The rulers are llama-bench, and a client of llama-server. Equal picks are measured once and share their figures. Each
round measures every pick, so that a ratio of two picks within a round is free of the machine's slow drift.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import NoAnswer, Outcome, Pick, Question, Rules, write_json
from picks import changes_quality, in_effect, perplexity_words, server_words
from programs import bench, last_line, timed

from sweeper.apply.verify.client_speed import measure_speed
from sweeper.client.servers import LlamaServer
from sweeper.engine.server_dialect import parse_devices
from sweeper.errors import SweeperError
from sweeper.machine import examine
from sweeper.records import Workload
from sweeper.servers import HOST, free_port, started

_ALIAS = "race"
_START_SECONDS = 300.0
_COMMAND_SECONDS = 900.0
_KLD_SECONDS = 3600.0
_CLIENT_REPEATS = 2  # in a round
_USUAL_PORT = 8080
_MEAN_KLD = re.compile(r"Mean\s+KLD:\s*([-+\d.eE]+)")
_PORT = re.compile(r"--port[ =](\d+)")
Measured = dict[str, Any]  # tok/s by ruler and phase; "error" if there is none


@dataclass(frozen=True, slots=True)
class Entrant:
    """A distinct pick, and the question that it answers."""

    pick: Pick
    question: Question


@dataclass(frozen=True, slots=True)
class Judge:
    """The rulers on this machine."""

    rules: Rules
    cores: int
    has_gpu: bool
    say: Callable[[str], None]

    @classmethod
    def here(cls, rules: Rules, say: Callable[[str], None]) -> Judge:
        """A judge that knows this machine's cores, and whether this build of llama.cpp sees a GPU."""
        listed = subprocess.run(
            [str(rules.programs / "llama-bench"), "--list-devices"],
            capture_output=True,
            text=True,
            check=False,
        )
        return cls(rules, examine().physical_cores, bool(parse_devices(listed.stdout + listed.stderr)), say)

    def key(self, pick: Pick, question: Question) -> str:
        """Equal for picks that run alike."""
        told = [question, _digest(pick.model), in_effect(pick.options, self.cores, self.has_gpu)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def looks(self, pick: Pick) -> str:
        """Equal for picks that run alike for prompts of the race's length."""
        found = in_effect(pick.options, self.cores, self.has_gpu, self.rules.prompt_tokens)
        return json.dumps([_digest(pick.model), found], sort_keys=True)

    def baseline(self, question: Question) -> Pick:
        """llama-server's defaults on the file that the contestants of this question get."""
        model = self.rules.precise_model if question == "quality" else self.rules.model
        return Pick(str(model))

    # -- speed

    def rounds(self, entrants: Mapping[str, Entrant]) -> list[dict[str, Measured]]:
        """Measure every entrant in every round; rounds that are on the disk are not measured again.

        Other entrants need other rounds, because all of a round must meet the same machine.
        """
        field = hashlib.sha256("".join(sorted(entrants)).encode()).hexdigest()[:8]
        file = self.rules.work / f"judged-{field}.json"
        kept: list[dict[str, Measured]] = json.loads(file.read_text("utf-8")) if file.is_file() else []
        for number in range(self.rules.judge_rounds):
            if number == len(kept):
                kept.append({})
            order = sorted(entrants)
            random.Random(number).shuffle(order)
            for place, key in enumerate(order):
                if key not in kept[number]:
                    self.say(f"round {number + 1}/{self.rules.judge_rounds}, {place + 1}/{len(order)}")
                    kept[number][key] = self.measured(entrants[key])
                    write_json(file, kept)
        return kept[: self.rules.judge_rounds]

    def measured(self, entrant: Entrant) -> Measured:
        """Decode and prefill speed by llama-bench and at the client, in tok/s; or the error of the first that fails."""
        rules, pick = self.rules, entrant.pick
        program, depth = rules.programs / "llama-bench", rules.depth_of(entrant.question)
        found: Measured = {}
        try:
            found["bench_decode"] = bench(
                program, pick.model, pick.options, generated=rules.generated_tokens, depth=depth
            )
            found["bench_prefill"] = bench(program, pick.model, pick.options, prompt=rules.prompt_tokens)
            found |= self._at_client(pick, depth)
        except SweeperError as error:
            found["error"] = str(error)
        return found

    def _at_client(self, pick: Pick, depth: int) -> Measured:
        rules, port = self.rules, free_port()
        words = [str(rules.programs / "llama-server"), "--model", pick.model, "--alias", _ALIAS]
        words += ["--host", HOST, "--port", str(port), "--ctx-size", str(rules.n_ctx), "--parallel", "1"]
        words += server_words(pick.options)
        url, log = f"http://{HOST}:{port}", rules.work / "judge-server.log"
        workload = Workload(
            prompt_tokens=rules.prompt_tokens, generated_tokens=rules.client_tokens, depth=depth
        )
        with started(
            words, f"{url}/health", log, _START_SECONDS, environment={}, failure=NoAnswer
        ) as process:
            server = LlamaServer(url, pid=process.pid)
            speed = measure_speed(server, _ALIAS, workload, rules.n_ctx, repeats=_CLIENT_REPEATS)
        prefill = None if speed.prefill is None else speed.prefill.median
        return {"client_decode": speed.decode.median, "client_prefill": prefill}

    # -- quality

    def kl_divergence(self, entrant: Entrant) -> float | str | None:
        """Mean KL divergence in nats/token from the baseline's file with an f16 cache.

        None if the pick changes neither the file nor the cache; a text if it cannot be measured.
        """
        base = self.baseline(entrant.question).model
        if entrant.pick.model == base and not changes_quality(entrant.pick.options):
            return None
        file = self.rules.work / "kld.json"
        kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        words = perplexity_words(entrant.pick.options)
        key = " ".join([base, entrant.pick.model, *words])
        if key not in kept:
            self.say("KL divergence")
            try:
                kept[key] = self._kl_divergence(base, entrant.pick.model, words)
            except NoAnswer as error:
                kept[key] = str(error)
            write_json(file, kept)
        found: float | str = kept[key]
        return found

    def _kl_divergence(self, base: str, model: str, words: Sequence[str]) -> float:
        logits = self.rules.work / f"logits-{hashlib.sha256(base.encode()).hexdigest()[:8]}.bin"
        if not logits.is_file():
            partial = logits.with_suffix(".part")
            self._perplexity(base, ["--kl-divergence-base", str(partial)])
            partial.replace(logits)
        output = self._perplexity(model, ["--kl-divergence-base", str(logits), "--kl-divergence", *words])
        found = _MEAN_KLD.search(output)
        if found is None:
            raise NoAnswer(f"llama-perplexity printed no KL divergence: {last_line(output)}")
        return float(found[1])

    def _perplexity(self, model: str, words: Sequence[str]) -> str:
        rules = self.rules
        program = [str(rules.programs / "llama-perplexity"), "-m", model, "-f", str(rules.text), "-c", "512"]
        ran = timed(
            [*program, "--chunks", str(rules.kld_chunks), *words],
            rules.work / "perplexity.log",
            {},
            _KLD_SECONDS,
        )
        if ran.exit_code != 0:
            raise NoAnswer(f"llama-perplexity ended with {ran.exit_code}: {last_line(ran.output)}")
        return ran.output

    # -- the printed command

    def starts(self, command: str | None) -> str:
        """Whether a printed command starts as it is: ``yes``, or the reason why not.

        A server starts if its /health answers. Another command starts if it ends without an error.
        """
        if command is None:
            return "none printed"
        file = self.rules.work / "starts.json"
        kept: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        if command not in kept:
            self.say(f"starts unchanged? {command.splitlines()[-1].strip()}")
            tried = self._tried(command)
            if tried is None:  # the machine's fault, so the next call tries again
                return f"not tried: port {_port_of(command)} is taken"
            kept[command] = tried
            write_json(file, kept)
        return kept[command]

    def _tried(self, command: str) -> str | None:
        folder = self.rules.work / "starts"
        for name in ("home", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in self.rules.environment(folder).items() if v is not None}
        rivals = [str(path) for path in sorted((self.rules.work / "environments").glob("*/bin"))]
        environment["PATH"] = os.pathsep.join([environment["PATH"], *rivals])
        words, log = ["bash", "-c", command], folder / "output.log"
        if "llama-server" not in command:
            ran = timed(words, log, environment, _COMMAND_SECONDS)
            return "yes" if ran.exit_code == 0 else f"no: {last_line(ran.output)}"
        port = _port_of(command)
        if free_port(port) != port:
            return None
        try:
            page = f"http://{HOST}:{port}/health"
            with started(words, page, log, _START_SECONDS, environment=environment, failure=NoAnswer):
                return "yes"
        except SweeperError:
            return f"no: {_reason(log)}"


@functools.cache
def _digest(path: str) -> str:
    """Of the file's content: two contestants may make the same file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _port_of(command: str) -> int:
    found = _PORT.search(command)
    return int(found[1]) if found else _USUAL_PORT


def _reason(log: Path) -> str:
    """The first line of a server's log that speaks of an error, else the last line."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return next((line.strip() for line in lines if "error" in line.lower()), last_line("\n".join(lines)))


def entrants_of(judge: Judge, outcomes: Sequence[tuple[Outcome, Question]]) -> dict[str, Entrant]:
    """Every distinct pick by its key, with the baseline of each question."""
    found: dict[str, Entrant] = {}
    for outcome, question in outcomes:
        picks = [judge.baseline(question), *outcome.also]
        picks += [pick for pick in (outcome.pick, outcome.first and outcome.first.pick) if pick]
        for pick in picks:
            found.setdefault(judge.key(pick, question), Entrant(pick, question))
    return found
