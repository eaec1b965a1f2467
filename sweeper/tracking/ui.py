"""``sweeper ui``: MLflow's own pages for a store, on 127.0.0.1, for as long as the block lasts."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from sweeper.errors import StoreError, SweeperError, SweepMissingError
from sweeper.http import post
from sweeper.servers import HOST, free_port, last_lines, started
from sweeper.tracking import store
from sweeper.tracking.views import view_of

PORT = 5000  # MLflow's own
START_SECONDS = 300.0  # 11 to 21 s on 2 quiet cores, over 100 s were seen on busy ones
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
        self._log = Path()
        self._base = ""
        self._held = ExitStack()

    def __enter__(self) -> Self:
        if self._place.uri.startswith(("http://", "https://")):
            self._base = self._place.uri.rstrip("/")
            return self
        if self._place.root is not None:
            _check_local(self._place.root)
        port = free_port(self._wished_port)
        self._base = f"http://{HOST}:{port}"
        with ExitStack() as held:
            self._log = Path(held.enter_context(TemporaryDirectory(prefix="sweeper-ui-"))) / "log"
            self._process = held.enter_context(
                started(
                    _command(self._place, port),
                    f"{self._base}/health",
                    self._log,
                    START_SECONDS,
                    environment=ENVIRONMENT,
                    failure=StoreError,
                )
            )
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

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
            raise StoreError(f"MLflow's server ended: {last_lines(self._log)}")

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
        address = f"{self._base}/api/2.0/mlflow/{path}"
        try:
            return dict(post(address, body, ANSWER_SECONDS, use_proxy=self._process is None))
        except SweeperError as error:
            raise StoreError(f"MLflow does not answer: {error}") from error


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
