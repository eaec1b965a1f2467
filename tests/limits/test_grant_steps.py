"""The steps that `sweeper doctor` prints, run by root in a copy of the system's folders, then used by a user."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sweeper.limits.rights import HELPER_GROUP, HELPER_PATH, HELPER_VERSION, grant_steps

USER = "sweeper-test-user"
PROGRAMS = ("unshare", "mount", "sudo", "visudo", "useradd", "groupadd", "usermod", "runuser")
# A mount namespace of its own: what the steps change in these folders is seen by nobody else and ends with it.
OVERLAY = """
set -e
mount -t tmpfs scratch {scratch}
for folder in etc usr/local; do
    mkdir -p {scratch}/$folder/upper {scratch}/$folder/work
    upper={scratch}/$folder/upper work={scratch}/$folder/work
    mount -t overlay overlay -o lowerdir=/$folder,upperdir=$upper,workdir=$work /$folder
done
"""


def _in_namespace(script: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    scratch.mkdir(exist_ok=True)
    text = OVERLAY.format(scratch=shlex.quote(str(scratch))) + script
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", text], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0 or absent:
        pytest.skip(f"needs root and {', '.join(absent) or 'nothing else'}")
    tried = _in_namespace("true", tmp_path / "tried")
    if tried.returncode != 0:
        pytest.skip(f"this machine allows no mounts: {tried.stderr.strip()}")
    return tmp_path / "scratch"


def test_an_ordinary_user_who_followed_the_steps_may_run_the_helper_and_nothing_else(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", USER)  # who asks the doctor
    *steps, last, _zeusd = grant_steps()
    assert f"sudo -n {HELPER_PATH} check" in last
    done = _in_namespace(
        "\n".join(
            [
                f"useradd --no-create-home {USER}",
                *steps,
                f"id -nG {USER}",
                f"runuser -u {USER} -- sudo -n {HELPER_PATH} check",
                f"runuser -u {USER} -- sudo -n id && exit 9",
                f"runuser -u {USER} -- sudo -n {HELPER_PATH} nvml-power GPU-none 1000 && exit 9",
                f"stat -c %U:%a {HELPER_PATH}",
            ]
        ),
        scratch,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert HELPER_GROUP in next(line for line in lines if USER in line or HELPER_GROUP in line)
    assert HELPER_VERSION in lines
    assert lines[-1] == "root:755"
    assert not Path(HELPER_PATH).exists()  # the namespace kept it to itself
