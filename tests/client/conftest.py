"""Real servers for the load generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.errors import VerifyError
from sweeper.servers import free_port, started


@pytest.fixture(scope="module")
def server_url(
    llama_server: str, smallest_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real llama-server with two slots."""
    port = free_port()
    argv = [str(llama_server), "-m", str(smallest_model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "2048", "-np", "2", "-t", "1", "-tb", "1", "--cache-ram", "0"]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("llama-server") / "log"
    with started(argv, f"{url}/health", log, 120, environment={}, failure=VerifyError):
        yield url
