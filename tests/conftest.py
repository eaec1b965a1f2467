"""What all tests share: real models, written once a session, and a way to run the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hurry import run_here
from hypothesis import settings
from longest_files import LONGEST

from sweeper import files, locks
from sweeper.errors import VerifyError
from sweeper.model.shapes import ModelShape
from sweeper.model.synthetic import write_synthetic
from sweeper.servers import free_port, started
from sweeper.tracking import store

# Machines are shared and slow at times: a deadline would fail tests for what is not their fault.
settings.register_profile("sweeper", deadline=None)
settings.load_profile("sweeper")

# The smallest llama whose rows are a multiple of 256, which K-quants need.
SMALLEST = ModelShape(
    n_layer=2,
    embedding_length=256,
    feed_forward_length=512,
    head_count=4,
    head_count_kv=2,
    vocab_size=512,
    n_ctx_train=2048,
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in which order pytest-xdist deals them out (``--no-loadscope-reorder``)."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def smallest_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF of about two million weights, in F16."""
    return write_synthetic(SMALLEST, tmp_path_factory.mktemp("models") / "smallest.gguf", "F16", seed=1)


@pytest.fixture(scope="session")
def smallest_f16(smallest_model: Path) -> Path:
    """The same model, by the name that says its precision."""
    return smallest_model


@pytest.fixture(scope="session")
def llama_server() -> str:
    """The path of a real llama-server: of SWEEPER_LLAMA_SERVER, or what `make server` built, or on the PATH."""
    built = Path(sys.executable).parent / "llama-server"
    named = os.environ.get("SWEEPER_LLAMA_SERVER")
    program = named or (str(built) if built.is_file() else shutil.which("llama-server"))
    if not program or not Path(program).is_file():
        pytest.skip("no llama-server: `make server` builds one")
    return program


@pytest.fixture(scope="session")
def server_url(
    llama_server: Path, smallest_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real llama-server with two slots."""
    port = free_port()
    argv = [str(llama_server), "-m", str(smallest_model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "2048", "-np", "2", "-t", "1", "-tb", "1", "--cache-ram", "0"]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("llama-server") / "log"
    with started(argv, f"{url}/health", log, 120, environment={}, failure=VerifyError):
        yield url


@pytest.fixture(scope="session", autouse=True)
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], None]]:
    """Puts MLflow's empty tables into a folder of runs. Making them takes seconds, so it happens once and is copied.

    sweeper in this process copies them, too. In a process of its own, it makes its own.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    make, kept = store._make_schema, shared / store.DATABASE

    def put(root: Path) -> None:
        root.mkdir(exist_ok=True)
        database = root / store.DATABASE
        database.touch()
        if database.stat().st_size > 0:
            return
        with locks.held(shared / store.LOCK):
            if not kept.exists():
                make(root)
                files.replace(kept, database.read_bytes())
                return
        shutil.copyfile(kept, database)

    with mock.patch.object(store, "_make_schema", put):
        yield put


@pytest.fixture
def sweeper(tmp_path: Path) -> Run:
    """Runs `sweeper …` in this process, in an empty folder, and returns what it said."""
    return partial(run_here, cwd=tmp_path)


@pytest.fixture
def sweeper_process(tmp_path: Path) -> Run:
    """The same in a process of its own."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sweeper", *arguments],
            cwd=tmp_path,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"} | extra,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
