"""However an apply or a rollback ends, `rollback` gives back every file and the limit, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.apply.targets.registry import target_names

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_everywhere.py"), str(tmp_path_factory.mktemp("killed"))],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", target_names())
def test_killed_between_any_two_writes_everything_comes_back(target: str, results: dict[str, dict]) -> None:
    assert results[target]["wrong"] == []
    assert results[target]["kills"] >= 12  # else the steps are no longer announced
