"""``sweeper ui``: serves MLflow's own pages for a store on 127.0.0.1 while the ``with`` block lasts."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from sweeper.errors import StoreError, SweepMissingError
from sweeper.servers import HOST, free_port, last_lines, started
from sweeper.tracking import store
from sweeper.tracking.views import view_of

PORT = 5000  # MLflow's own
START_SECONDS = 300.0  # MLflow starts in 11 to 21 s on 2 quiet cores, and took over 100 s on busy ones

# Show the pages for models, not those for chat traces. Without this, MLflow chooses.
MODE = "?workflowType=machine_learning"

ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise MLflow starts 8 more processes
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Addresses to open; all but ``home`` are None if the store has no sweep.

    ``experiment`` lists the trials of the sweep, sorted, with their figures. ``sweep`` shows the recommended
    commands. ``charts`` draws the Pareto front and the swept parameters of that sweep.
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
    """Runs an MLflow server on one store, in its own process group, until the ``with`` block ends.

    If the store is itself a server, this starts none and returns the addresses of that server's pages.
    """

    def __init__(self, uri: str | None, root: Path, port: int = PORT) -> None:
        self._place = store.location(uri, root)
        self._wished_port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()
        self._base = self._place.uri.rstrip("/")
        self._held = ExitStack()

    def __enter__(self) -> Self:
        root = self._place.root
        if root is not None and not (
            (root / store.DATABASE).is_file() and (root / store.DATABASE).stat().st_size
        ):
            raise SweepMissingError(f"no sweep in {root} yet: run `sweeper sweep` first")
        self._client = store.connect(self._place)
        if self._base.startswith(("http://", "https://")):
            return self
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
                    environment=store.environment() | ENVIRONMENT,
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
        """The addresses for the newest sweep, or for the sweep of that name.

        Raises:
            SweepMissingError: no sweep of that name is in the store.
            StoreError: the store no longer answers.
        """
        runs = self._client.search_runs(
            [e.experiment_id for e in self._client.search_experiments(max_results=1000)],
            "tags.`sweeper.kind` = 'sweep'",
            max_results=1 if sweep is None else 1000,
            order_by=["attributes.start_time DESC"],
        )
        run = next((r for r in runs if sweep in (None, r.data.tags.get("sweeper.sweep"))), None)
        home = f"{self._base}/#/experiments"
        if run is None:
            if sweep is not None:
                raise SweepMissingError(f"no sweep {sweep!r} in MLflow at {self._place.words}")
            return Pages(home + MODE)
        runs_page = f"{home}/{run.info.experiment_id}/runs"
        return Pages(
            home=home + MODE,
            experiment=f"{runs_page}{MODE}&viewStateShareKey={view_of(run.data.tags)}",
            sweep=f"{runs_page}/{run.info.run_id}{MODE}",
            charts=f"{runs_page}{MODE}&compareRunsMode=CHART&viewStateShareKey={view_of(run.data.tags)}",
        )

    def wait(self) -> None:
        """Block until the server ends or the user presses Ctrl-C."""
        if self._process is not None:
            self._process.wait()
            raise StoreError(f"the MLflow server stopped: {last_lines(self._log)}")


def _command(place: store.Location, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri]
    if place.artifacts is not None:
        command += ["--default-artifact-root", place.artifacts, "--no-serve-artifacts"]
    return [*command, "--host", HOST, "--port", str(port), "--workers", "1"]
