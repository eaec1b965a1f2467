"""``sweeper verify``: does the configuration in force keep what the sweep promised?"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sweeper.apply.base import Request
from sweeper.apply.fresh import model_file
from sweeper.apply.llama_options import server_argv
from sweeper.apply.names import alias_for
from sweeper.apply.run import environment_of, resolve
from sweeper.apply.targets.llama_cpp_python import model_settings
from sweeper.apply.verify.client_speed import REPEAT_SECONDS, ClientSpeed, Meter, measure_speed
from sweeper.apply.verify.servers import InForce, LlamaCppPythonServer, LlamaServer, Server, detect
from sweeper.errors import (
    EngineMissingError,
    ModelMissingError,
    SweeperError,
    TrialFailed,
    UsageError,
    VerifyError,
)
from sweeper.parameters import SERVER_TUNABLES, as_engine_has_it, changes_nothing, padded
from sweeper.records import PowerSource, Reading, SweepRecord, TrialRecord
from sweeper.servers import free_port, started

ServerKind = Literal["auto", "llama-server", "llama-cpp-python", "ollama"]
Verdict = Literal["kept", "missed", "unclear", "drifted", "unknown"]
SpeedsNow = Callable[[TrialRecord], Mapping[str, Reading]]
"""Measures sweeper's own engine once more: decode and prefill in tok/s, by metric."""

SURPRISE = 0.3  # a server this much better than its promise shows that the promise was wrong
TOO_WIDE = (
    0.25  # half an interval of more than this share of its median lets nothing be said of medians that agree
)
TOLERANCE = 0.05  # a promise is kept where speed is at most this fraction below it, or power above it

# Where each kind listens when nobody says otherwise.
_USUAL_URLS = {
    "llama-server": "http://127.0.0.1:8080",
    "llama-cpp-python": "http://127.0.0.1:8000",
    "ollama": "http://127.0.0.1:11434",
}


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Which server to ask; None and ``auto`` leave it to what is found."""

    server: ServerKind = "auto"
    url: str | None = None  # a running server; None: one at its usual address, else one is started
    name: str | None = None  # the model's name there
    program: Path | None = None  # of llama-server
    repeats: int = 5
    repeat_seconds: float = REPEAT_SECONDS
    tolerance: float = TOLERANCE
    start: bool | None = None  # True: always start one; False: never
    start_timeout_seconds: float = 1800.0  # a 40 GB model from a slow disk


@dataclass(frozen=True, slots=True)
class SettingCheck:
    """One setting, as configured and as in force."""

    name: str
    configured: Any
    in_force: Any
    read_from: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class FigureCheck:
    """One figure, as promised and as found, in the metric's unit."""

    metric: str
    promised: Reading | None
    found: Reading | None
    own: Reading | None  # as the server says itself
    verdict: Verdict
    says: str = ""
    now: Reading | None = None  # of sweeper's own engine, measured again where the promise seemed not kept

    @property
    def change(self) -> float | None:
        """Found against promised, as a fraction: -0.03 is 3 % less."""
        if self.promised is None or self.found is None or not self.promised.median:
            return None
        return self.found.median / self.promised.median - 1.0


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that `verify` found."""

    sweep: str
    trial: int
    server: str
    url: str
    name: str
    started: bool  # we started it for this, and ended it
    tolerance: float
    settings: tuple[SettingCheck, ...]
    figures: tuple[FigureCheck, ...]
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Nothing is missed."""
        verdicts = [s.verdict for s in self.settings] + [f.verdict for f in self.figures]
        return "missed" not in verdicts

    def demand(self) -> None:
        """Nothing where the promise is kept.

        Raises:
            VerifyError: names each setting and figure that is not as promised.
        """
        wrong = [
            f"{s.name} is {s.in_force}, not {s.configured}" for s in self.settings if s.verdict == "missed"
        ]
        wrong += [figure.says for figure in self.figures if figure.verdict == "missed"]
        if wrong:
            raise VerifyError(f"the promise is not kept at {self.url}: {'; '.join(wrong)}")


def verify(
    record: SweepRecord,
    pick: str | int | TrialRecord,
    options: VerifyOptions | None = None,
    *,
    meter: Meter | None = None,
    speeds_now: SpeedsNow | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> Verification:
    """Find or start a server, read its settings, measure it, and compare with the promise.

    Args:
        record: The sweep.
        pick: A pick's words, a trial's number, or a trial.
        options: Which server.
        meter: An open meter; its watts are compared only where it is the sensor of the sweep.
        speeds_now: Measures sweeper's own engine again. Asked where a speed is not as promised, once the server is
            gone or needs no memory of a GPU: it tells a slow server from a machine that has changed.
        progress: Is told what goes on.

    Raises:
        UsageError: a simulated sweep, or a server that does not offer the model.
        EngineMissingError: no server answers, or none can be started.
        VerifyError: the server refuses, breaks off, or cannot be measured. A promise that is not kept is
            no error here: see `Verification.demand`.
    """
    options = options or VerifyOptions()
    if record.engine.simulated:
        raise UsageError(f"sweep {record.sweep!r} is simulated: there is nothing in force to verify")
    trial = resolve(record, pick)
    words = pick if isinstance(pick, str) else ""
    name = options.name or alias_for(record.model.name, trial.configuration.quant, words)
    with _server(record, trial, name, options, progress) as (server, name, ours):
        server.generate(name, "a", 1)  # loads the model, so that its settings can be read
        settings = _settings(record, trial, server.in_force(name))
        n_ctx = next(
            (s.in_force for s in settings if s.name == "n_ctx" and s.in_force), trial.configuration.n_ctx
        )
        speed = measure_speed(
            server,
            name,
            record.workload,
            int(n_ctx),
            repeats=options.repeats,
            repeat_seconds=options.repeat_seconds,
            meter=meter,
            progress=progress,
        )
        found = Verification(
            sweep=record.sweep,
            trial=trial.number,
            server=server.kind,
            url=server.url,
            name=name,
            started=ours,
            tolerance=options.tolerance,
            settings=settings,
            figures=_figures(record, trial, speed, meter, options.tolerance),
            notes=_notes(record, trial, speed, meter),
        )
    on_gpu = record.engine.gpu_offload and trial.configuration.n_gpu_layers != 0
    if speeds_now is None or not _too_slow(found) or (on_gpu and not ours):
        return found
    progress("slower than promised: measuring sweeper's own engine, to tell the server from the machine")
    try:
        now = speeds_now(trial)
    except TrialFailed as failure:
        return replace(found, notes=(*found.notes, f"sweeper's own engine could not be measured: {failure}"))
    return replace(
        found, figures=tuple(_beside_now(f, now.get(f.metric), found.tolerance) for f in found.figures)
    )


def _too_slow(found: Verification) -> bool:
    return any(f.metric != "watts" and f.verdict in ("missed", "unclear") for f in found.figures)


def _beside_now(check: FigureCheck, now: Reading | None, tolerance: float) -> FigureCheck:
    """The check with what the engine itself gives now; ``drifted`` where that is less and the server gives it."""
    if now is None or check.promised is None or check.found is None or check.verdict == "kept":
        return check
    moved = 100 * (now.median / check.promised.median - 1)
    own = f"sweeper's own engine gives {now.median:.4g} tok/s now, {moved:+.1f} % against the sweep"
    slower = now.median < (1 - tolerance) * check.promised.median
    if slower and judge(now, check.found, tolerance, more_is_better=True) == "kept":
        return replace(
            check, now=now, verdict="drifted", says=f"{check.says}; {own}: the machine, not the server"
        )
    return replace(check, now=now, says=f"{check.says}; {own}")


def _half(reading: Reading) -> float:
    """The wider half of an interval, as a share of its median."""
    return max(reading.high - reading.median, reading.median - reading.low) / abs(reading.median or 1.0)


def _too_wide(*readings: Reading) -> bool:
    return max(map(_half, readings)) > TOO_WIDE


def judge(promised: Reading, found: Reading, tolerance: float, *, more_is_better: bool) -> Verdict:
    """Whether ``found`` keeps ``promised``.

    Kept: the medians are within the tolerance, or better. Missed: they are not, and the intervals stand
    apart. Unclear: they are not, and the intervals touch, so that noise may be all of it; or they are, and either
    interval is so wide that this says nothing.
    """
    sign = 1.0 if more_is_better else -1.0
    if sign * (found.median - promised.median) >= -tolerance * abs(promised.median):
        better = sign * (found.median - promised.median) > SURPRISE * abs(promised.median)
        return "kept" if better or not _too_wide(promised, found) else "unclear"
    apart = found.high < promised.low if more_is_better else found.low > promised.high
    return "missed" if apart else "unclear"


@contextlib.contextmanager
def _server(
    record: SweepRecord,
    trial: TrialRecord,
    name: str,
    options: VerifyOptions,
    progress: Callable[[str], None],
) -> Iterator[tuple[Server, str, bool]]:
    """The server to ask, the model's name there, and whether we started it."""
    path = str(Path(model_file(record, trial).path).expanduser().absolute())
    found = None if options.start else _find(path, name, options)
    if found is not None:
        progress(f"found {found[0].kind} at {found[0].url}")
        yield (*found, False)
        return
    if options.start is False:
        places = options.url or ", ".join(_USUAL_URLS.values())
        raise EngineMissingError(
            f"no server that offers {name!r} answers at {places}: start it, or let verify do it"
        )
    if not Path(path).is_file():
        raise ModelMissingError(f"the model {path} is not there: put it back, or run the sweep again")
    with _start(record, trial, path, name, options, progress) as server:
        yield server, name, True


def _find(path: str, name: str, options: VerifyOptions) -> tuple[Server, str] | None:
    if options.url is not None:
        server = detect(options.url)
        chosen = _name_there(server, path, name, options.name is not None)
        if chosen is None:
            offered = ", ".join(server.offered()) or "no model"
            raise UsageError(f"{server.url} offers {offered}, and not {name!r}: say which with --name")
        return server, chosen
    for kind, url in _USUAL_URLS.items():
        if options.server not in ("auto", kind):
            continue
        try:
            server = detect(url)
            chosen = _name_there(server, path, name, options.name is not None)
        except SweeperError:
            continue  # nobody there, or someone else's server: one of our own is started instead
        if chosen is not None and server.kind in (kind, options.server):
            return server, chosen
    return None


def _name_there(server: Server, path: str, name: str, given: bool) -> str | None:
    """The name under which a server offers the model: as asked for, else that of the same file."""
    offered = server.offered()
    if name in offered:
        return name
    if given:
        return None
    return next((other for other, file in offered.items() if file == path), None)


@contextlib.contextmanager
def _start(
    record: SweepRecord,
    trial: TrialRecord,
    path: str,
    name: str,
    options: VerifyOptions,
    progress: Callable[[str], None],
) -> Iterator[Server]:
    """A server of our own on a free port of 127.0.0.1, ended when the block ends."""
    kind = options.server
    program = str(options.program) if options.program else shutil.which("llama-server")
    if kind == "ollama":
        raise EngineMissingError(
            f"no Ollama answers at {options.url or _USUAL_URLS['ollama']}: start it first"
        )
    if kind == "auto":
        kind = "llama-server" if options.program else "llama-cpp-python"
    if kind == "llama-server" and program is None:
        raise EngineMissingError("no llama-server on PATH: install llama.cpp, or name it with --program")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = dict(environment_of(record))
    progress(f"starting {kind}")
    with tempfile.TemporaryDirectory(prefix="sweeper-verify-") as folder:
        log = Path(folder) / "log"
        if kind == "llama-server":
            request = Request(record, trial, path, name, port, Path(folder))
            argv = server_argv(request, str(program))
            page = f"{url}/health"
        else:
            config = Path(folder) / "config.json"
            settings = model_settings(trial.configuration, path, name) | {
                "verbose": True
            }  # its log is read back
            config.write_text(json.dumps({"host": "127.0.0.1", "port": port, "models": [settings]}), "utf-8")
            argv = (sys.executable, "-m", "llama_cpp.server", "--config_file", str(config))
            # these three go before the file
            environment |= {"HOST": "127.0.0.1", "PORT": str(port), "CONFIG_FILE": str(config)}
            page = f"{url}/v1/models"
        with started(
            argv, page, log, options.start_timeout_seconds, environment=environment, failure=VerifyError
        ) as process:
            if kind == "llama-server":
                yield LlamaServer(url, pid=process.pid)
            else:
                yield LlamaCppPythonServer(url, pid=process.pid, log=log)


def _settings(
    record: SweepRecord, trial: TrialRecord, in_force: Mapping[str, InForce]
) -> tuple[SettingCheck, ...]:
    file = model_file(record, trial)
    configured = trial.configuration.to_dict()
    checks = []
    if "sha256" in in_force:
        checks.append(_check("model", file.sha256, in_force["sha256"]))
    elif "model" in in_force:
        path = str(Path(file.path).expanduser().absolute())
        checks.append(_check("model", path, in_force["model"]))
    for key in (tunable.name for tunable in SERVER_TUNABLES):
        if changes_nothing(key, record.engine.gpu_offload, record.model.expert_count > 0):
            continue  # servers report it as they like
        said = in_force.get(key)
        if said is None:
            checks.append(SettingCheck(key, configured[key], None, "the server does not say", "unknown"))
        elif key == "n_gpu_layers":
            checks.append(_layers_check(configured[key], said, record.model.n_layer))
        else:
            checks.append(_check(key, as_engine_has_it(key, trial.configuration), said))
    return tuple(checks)


def _layers_check(configured: int, said: InForce, n_layer: int) -> SettingCheck:
    """Servers say "all", a number beyond the last layer, or how many there are: all the same."""

    def layers(value: Any) -> Any:
        return n_layer + 1 if isinstance(value, int) and (value < 0 or value > n_layer) else value

    kept = layers(said.value) == layers(configured)
    return SettingCheck("n_gpu_layers", configured, said.value, said.read_from, "kept" if kept else "missed")


def _check(name: str, configured: Any, said: InForce) -> SettingCheck:
    kept = said.value == configured or (name == "n_ctx" and said.value == padded(configured))
    return SettingCheck(name, configured, said.value, said.read_from, "kept" if kept else "missed")


def _figures(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: Meter | None, tolerance: float
) -> tuple[FigureCheck, ...]:
    missing = dict(speed.missing)
    rows = [
        ("tokens_per_second", speed.decode, speed.own_decode, True),
        ("prompt_tokens_per_second", speed.prefill, speed.own_prefill, True),
    ]
    if meter is not None:
        rows.append(("watts", speed.watts, None, False))
    checks = []
    for metric, found, own, more_is_better in rows:
        promised = trial.metrics.get(metric)
        verdict: Verdict = "unknown"
        if promised is None:
            says = "the sweep promised no such figure"
        elif found is None:
            says = missing.get(metric, "not measured")
        elif metric == "watts" and meter is not None and not _same_sensor(record.power, meter.source):
            says = "measured on another sensor than the sweep: not compared"
        else:
            verdict = judge(promised, found, tolerance, more_is_better=more_is_better)
            says = _says(metric, promised, found, tolerance, verdict)
        checks.append(FigureCheck(metric, promised, found, own, verdict, says))
    return tuple(checks)


def _says(metric: str, promised: Reading, found: Reading, tolerance: float, verdict: Verdict) -> str:
    """What there is to say of a figure; nothing where it is as promised."""
    if verdict == "kept" and abs(found.median - promised.median) <= SURPRISE * abs(promised.median):
        return ""
    if verdict == "kept":
        return f"{metric} is far better than promised: the sweep was disturbed, or measured once; sweep again"
    change = 100 * (found.median / promised.median - 1)
    if verdict == "unclear" and _too_wide(promised, found):
        return (
            f"{metric} scatters too much to tell: promised ±{_half(promised):.0%}, found ±{_half(found):.0%}"
        )
    unit = "W" if metric == "watts" else "tok/s"
    return (
        f"{metric} is {found.median:.4g} {unit}, {change:+.1f} % against the promised {promised.median:.4g} "
        f"(tolerance {100 * tolerance:g} %)"
    )


def _same_sensor(one: PowerSource, other: PowerSource) -> bool:
    return (one.name, one.scope, one.kind, one.device) == (other.name, other.scope, other.kind, other.device)


def _notes(
    record: SweepRecord, trial: TrialRecord, speed: ClientSpeed, meter: Meter | None
) -> tuple[str, ...]:
    c = trial.configuration
    notes = [f"{name}: {reason}" for name, reason in speed.missing]
    if record.state == "running":
        notes.append(
            "this sweep is still running, or was cut off: measured beside it, both figures are disturbed"
        )
    if meter is None and "watts" in trial.metrics:
        notes.append("watts were not measured: no meter was given")
    if c.power_limit_watts is not None:
        notes.append(
            f"the configuration holds a power limit of {c.power_limit_watts} W, which no server tells: "
            "`sweeper doctor` shows the one in force"
        )
    wanted = record.workload.prompt_tokens
    if abs(speed.prompt_tokens - wanted) > 0.1 * wanted:
        notes.append(f"prompts were {speed.prompt_tokens} tokens long, and {wanted} in the sweep")
    return tuple(notes)
