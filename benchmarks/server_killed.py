"""`kill -9` of sweeper at random moments of a sweep with engine=llama_server: what is left of its server?

Half of the sweeps start the server directly, the others behind a wrapper: a shell, or a script that waits for it. One
kill in five comes at a random moment from the start of the sweep, the others at one from its first server. After each
kill, no process of the server may be left within 5 s, and its port must be free again. A variable that only the server
and its wrapper get tells their processes, and another one those of the whole sweep.

    python benchmarks/server_killed.py --llama-server .venv/bin/llama-server [--kills 4]

The exit code is 5 if anything was left. The same command goes on where it was stopped (12 minutes for 50 kills).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from gpu_record import StepFile
from side_by_side import OUT, ROOT, builds_of, finished, model_file, run

from sweeper.engine.llama_server import LlamaServerEngine
from sweeper.errors import EXIT_DONE, EXIT_VERIFY, EngineCrashed
from sweeper.servers import free_port

PROMISE_SECONDS = 5.0
PATIENCE_SECONDS = 20.0  # then what is left is recorded, and killed
SERVER_MARK, SWEEP_MARK = "SWEEPER_KILLED_SERVER", "SWEEPER_KILLED_SWEEP"
# Every trial is another server, and each lasts about as long as it takes to start one.
SWEEP = (
    *("experiment=quick", "engine=llama_server", "space.n_ubatch=[16,32,64,128]", "space.n_batch=[64,128]"),
    *("space.use_mmap=[true,false]", "space.flash_attn=[true,false]", "space.type_k=f16", "space.quant=null"),
    *("space.n_threads=1", "space.n_threads_batch=1", "search.trials=32", "search.minutes=null"),
    *("search.transfer=false", "search.early_stop=false", "search.wait_for_quiet=false"),
    *("workload.prompt_tokens=64", "workload.generated_tokens=16", "workload.n_ctx=256"),
    *("workload.warmup_seconds=0.1", "workload.screening_seconds=0.4", "workload.screening_repeats=2"),
)
EARLY = 5  # every fifth kill comes early
WAYS = ("direct", "behind a shell", "direct", "behind a script")


@dataclass(frozen=True, slots=True)
class Left:
    """What one kill left. Seconds are from the kill until every process of the server had ended."""

    way: str
    from_server: bool  # the moment is counted from the first server, not from the start
    moment_seconds: float
    servers: int  # processes of the server and its wrapper just before the kill
    seconds: float
    left: tuple[str, ...]  # command lines of the server's processes that had to be killed by hand
    others: tuple[str, ...]  # ... and of the sweep's other processes
    ports_held: tuple[int, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was left within the promised time."""
        return not (self.left or self.others or self.ports_held) and self.seconds <= PROMISE_SECONDS


def main() -> int:
    options = _arguments()
    model = model_file("tiny_15m", options.root)
    program = options.llama_server.absolute()
    with LlamaServerEngine(str(program), {None: model}) as engine:
        builds = builds_of({"": engine})
    print(f"{model.name}; {'; '.join(builds.values())}")
    file = StepFile(options.out, {"builds": builds, "seed": options.seed, "longest": options.longest})
    with tempfile.TemporaryDirectory(prefix="server-killed-") as folder:
        for kill in range(options.kills):
            way, key = WAYS[kill % len(WAYS)], f"kill {kill + 1}"
            moment = random.Random(f"{options.seed} {kill}").uniform(0.0, options.longest)
            binary = binary_of(way, program, Path(folder))
            early = kill % EARLY == EARLY - 1
            row = file.row(key, partial(one_kill, way, binary, model, Path(folder), not early, moment))
            after = "the start" if early else "the first server"
            print(f"  {key}, {way}, {moment:.1f} s after {after}: {_said(row)}", flush=True)
    good = table([Left(**_fields(row)) for row in file.rows if "error" not in row])
    return EXIT_DONE if finished(file) and good else EXIT_VERIFY


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--longest", type=float, default=15.0, help="seconds from the start to the last moment"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path, default=OUT / "server_killed.json")
    return parser.parse_args()


def binary_of(way: str, program: Path, folder: Path) -> str:
    """The value of ``engine.binary`` for one way to start the server."""
    if way == "direct":
        return f"'{program}'"
    script = folder / f"{way.rpartition(' ')[2]}.sh"
    if way == "behind a shell":  # which has the server as its child, and does not become it
        script.write_text(f"'{program}' \"$@\"\nexit $?\n")
        return f"[/bin/sh,'{script}']"
    script.write_text(f"#!/bin/sh\n'{program}' \"$@\" &\nwait\n")
    script.chmod(0o755)
    return f"'{script}'"


def one_kill(
    way: str, binary: str, model: Path, folder: Path, from_server: bool, moment_seconds: float
) -> dict[str, Any]:
    """Start a sweep, kill it at the moment, and wait until its processes are gone.

    Raises:
        EngineCrashed: the sweep ended by itself before the moment.
    """
    mark = secrets.token_hex(8)
    words = [f"engine.binary={binary}", f"engine.environment.{SERVER_MARK}={mark}", f"model.path='{model}'"]
    words += [f"root='{folder / 'mlruns'}'", f"name=killed-{mark}"]
    with (folder / "log").open("wb") as log:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "sweeper", "sweep", *SWEEP, *words],
            env=os.environ | {SWEEP_MARK: mark, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        while from_server and sweep.poll() is None and not _serving(mark):
            time.sleep(0.1)
        try:
            sweep.wait(moment_seconds)
        except subprocess.TimeoutExpired:
            servers = _serving(mark)
        else:
            said = (folder / "log").read_text("utf-8", "replace").splitlines()[-1:]
            raise EngineCrashed(f"the sweep ended by itself with {sweep.returncode}: {' '.join(said)}")
        sweep.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        sweep.wait()
    seconds = _until_gone(SERVER_MARK, mark, killed + PATIENCE_SECONDS) - killed
    _until_gone(SWEEP_MARK, mark, killed + PATIENCE_SECONDS)
    left, others = _end(marked(SERVER_MARK, mark)), _end(marked(SWEEP_MARK, mark))
    held = tuple(port for port in {*servers.values()} if free_port(port) != port)
    return asdict(Left(way, from_server, moment_seconds, len(servers), seconds, left, others, held))


def marked(name: str, value: str) -> list[psutil.Process]:
    """The running processes that have this variable in their environment."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue  # it has just ended, or belongs to somebody else
    return found


def _serving(mark: str) -> dict[int, int]:
    """The port of each process of the server, by process id; a wrapper has the server's port in its words."""
    found = ((process.pid, _port(process)) for process in marked(SERVER_MARK, mark))
    return {pid: port for pid, port in found if port is not None}


def _port(process: psutil.Process) -> int | None:
    """The port on a server's command line; None if it has none, or has just ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return next((int(word) for key, word in itertools.pairwise(words) if key == "--port"), None)


def _until_gone(name: str, value: str, deadline: float) -> float:
    """The moment at which no process with this mark was left, at most about ``deadline``."""
    while marked(name, value) and time.monotonic() < deadline:
        time.sleep(0.05)
    return time.monotonic()


def _end(processes: Sequence[psutil.Process]) -> tuple[str, ...]:
    """Kill what was left, and return the command lines."""
    lines = []
    for process in processes:
        try:
            lines.append(" ".join(process.cmdline()))
            process.kill()
        except psutil.Error:
            continue  # it ended after all
    return tuple(lines)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in Left.__dataclass_fields__}


def _said(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    left = Left(**_fields(row))
    return (
        f"{left.servers} server processes, gone after {left.seconds:.2f} s" if left.good else f"LEFT {left}"
    )


def table(kills: Sequence[Left]) -> bool:
    """Print a row for each way to start the server. True if nothing was left anywhere."""
    print("\n| server | kills | with a server | nothing left within 5 s | slowest s | ports held |")
    print("|---|---|---|---|---|---|")
    for way in dict.fromkeys(kill.way for kill in kills):
        some = [kill for kill in kills if kill.way == way]
        running = [kill for kill in some if kill.servers]
        slowest = max((kill.seconds for kill in running), default=0.0)
        held = sum(bool(kill.ports_held) for kill in some)
        good = sum(kill.good for kill in some)
        print(f"| {way} | {len(some)} | {len(running)} | {good} | {slowest:.2f} | {held} |")
    return bool(kills) and all(kill.good for kill in kills)


if __name__ == "__main__":
    run(main)
