"""``sweeper ui``: MLflow's own pages for a store, on 127.0.0.1, for as long as the block lasts."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from sweeper.errors import StoreError, SweepMissingError
from sweeper.tracking import store
from sweeper.tracking.views import view_of

HOST = "127.0.0.1"
PORT = 5000  # MLflow's own
START_SECONDS = 300.0  # 11 to 21 s on 2 quiet cores, over 100 s were seen on busy ones
END_SECONDS = 5.0
POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0

# The pages for models, not those for chat traces; without it MLflow decides by itself.
MODE = "?workflowType=machine_learning"

ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else 8 more processes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Addresses to open; all but ``home`` are None while the store has no sweep.

    ``experiment`` lists all sweeps of the model, ``sweep`` says what to run, ``charts`` draws the front and
    the swept parameters of that sweep.
    """

    home: str
    experiment: str | None = None
    sweep: str | None = None
    charts: str | None = None

    @property
    def best(self) -> str:
        """The page to show first."""
        return self.experiment or self.home


class MlflowUi:
    """MLflow's server on one store, in a process group of its own that ends with the ``with`` block.

    Where the store is a server already, none is started and its own pages are given.
    """

    def __init__(self, uri: str | None, root: Path, port: int = PORT) -> None:
        self._place = store.location(uri, root)
        self._wished_port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._base = ""

    def __enter__(self) -> Self:
        if self._place.uri.startswith(("http://", "https://")):
            self._base = self._place.uri.rstrip("/")
            return self
        if self._place.root is not None:
            _check_local(self._place.root)
        port = free_port(self._wished_port)
        self._base = f"http://{HOST}:{port}"
        self._log = TemporaryFile()
        self._process = subprocess.Popen(
            _command(self._place, port),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,  # Ctrl-C ends it through __exit__, in order, and its children with it
            preexec_fn=_end_with_parent,
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def pages(self, sweep: str | None = None) -> Pages:
        """Where to look: the newest sweep's experiment and run, or those of the sweep of that name.

        Raises:
            SweepMissingError: no sweep of that name is in the store.
            StoreError: the server does not answer any more.
        """
        run = self._newest_sweep(sweep)
        if run is None:
            if sweep is not None:
                raise SweepMissingError(f"no sweep {sweep!r} in MLflow at {self._place.words}")
            return Pages(f"{self._base}/#/experiments{MODE}")
        experiment = f"{self._base}/#/experiments/{run['info']['experiment_id']}"
        return Pages(
            home=self._base + "/#/experiments" + MODE,
            experiment=f"{experiment}/runs{MODE}",
            sweep=f"{experiment}/runs/{run['info']['run_id']}{MODE}",
            charts=f"{experiment}/runs{MODE}&compareRunsMode=CHART&viewStateShareKey={view_of(_tags(run))}",
        )

    def wait(self) -> None:
        """Block until the server ends, by itself or by Ctrl-C."""
        if self._process is not None:
            self._process.wait()
            raise StoreError(f"MLflow's server ended: {self._last_words()}")

    def _wait_until_it_answers(self) -> None:
        process = self._process
        assert process is not None
        give_up = time.monotonic() + START_SECONDS
        while not _answers(self._base):
            if process.poll() is not None:
                raise StoreError(f"MLflow's server did not start: {self._last_words()}")
            if time.monotonic() > give_up:
                raise StoreError(f"MLflow's server did not answer within {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _newest_sweep(self, sweep: str | None) -> dict[str, Any] | None:
        found = self._ask("experiments/search", {"max_results": 1000})
        ids = [e["experiment_id"] for e in found.get("experiments", [])]
        asked = {
            "experiment_ids": ids,
            "filter": "tags.`sweeper.kind` = 'sweep'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1 if sweep is None else 1000,
        }
        for run in self._ask("runs/search", asked).get("runs", []):
            if sweep is None or _tags(run).get("sweeper.sweep") == sweep:
                return dict(run)
        return None

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - http(s) only
            f"{self._base}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                return dict(json.load(answer))
        except (OSError, ValueError) as error:
            raise StoreError(f"MLflow at {self._base} did not answer: {store.first_line(error)}") from error

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _signal_group(process, signal.SIGKILL)  # whatever of the group is left
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def free_port(wished: int) -> int:
    """``wished`` where it is free on 127.0.0.1, else a free one of the kernel's choice."""
    for port in (wished, 0):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: no wait after it
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StoreError(f"no free port on {HOST}")


def _check_local(root: Path) -> None:
    if not (root / store.DATABASE).is_file() or (root / store.DATABASE).stat().st_size == 0:
        raise SweepMissingError(f"no sweep in {root} yet: run `sweeper sweep` first")
    with store.store_errors(str(root / store.DATABASE)), store.locked(root):
        store.mend_moved(root)


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def _command(place: store.Location, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri]
    if place.artifacts is not None:
        command += ["--default-artifact-root", place.artifacts, "--no-serve-artifacts"]
    return [*command, "--host", HOST, "--port", str(port), "--workers", "1"]


def _end_with_parent() -> None:
    """Linux: end the server when this process dies without having ended it (kill -9, a closed terminal)."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _answers(base: str) -> bool:
    try:
        with urllib.request.urlopen(base + "/health", timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
