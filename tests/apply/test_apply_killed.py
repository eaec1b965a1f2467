"""However an apply or a rollback ends, `rollback` gives back every file and the limit, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.apply.targets.registry import target_names

HERE = Path(__file__).parent


@pytest.mark.parametrize("target", target_names())
def test_killed_between_any_two_writes_everything_comes_back(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_everywhere.py"), str(tmp_path), target],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["kills"] >= 12  # else the steps are no longer announced
