"""The means of setting a limit: this process's own right, a small helper that root owns, or zeusd's socket.

Setting a limit needs CAP_SYS_ADMIN (NVML) or a writable sysfs file (RAPL). A sweep does not need root: the helper
(``set_limit_helper.py``) and zeusd check device and range themselves, and sweeper calls them without a shell.
sweeper checks for a right without setting a limit.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import LimitRefused, RightMissingError, SensorMissingError
from sweeper.power_settings import LimitMeansSettings

CAP_SYS_ADMIN = 21
MEANS = ("auto", "direct", "helper", "zeusd")

HELPER_PATH = "/usr/local/libexec/sweeper-set-limit"
HELPER = ("sudo", "-n", HELPER_PATH)
HELPER_GROUP = "sweeper"
SUDOERS = "/etc/sudoers.d/sweeper-set-limit"
HELPER_VERSION = "sweeper-set-limit 1"
# Setting a limit takes milliseconds; sudo on a busy machine takes a second.
HELPER_SECONDS = 10.0

ZEUSD_VARIABLE = "ZEUSD_SOCK_PATH"  # the name that zeus uses
ZEUSD_TOKEN_VARIABLE = "ZEUSD_TOKEN"  # noqa: S105 - a variable's name, no secret
ZEUSD_SOCKETS = ("/run/zeusd/zeusd.sock", "/var/run/zeusd.sock")
ZEUSD_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request to set a limit. ``words`` are the helper's arguments; ``index`` is the NVML index, for zeusd."""

    words: tuple[str, ...]
    index: int | None = None


@dataclass(frozen=True, slots=True)
class MeansSettings:
    """How to set limits. ``auto`` takes the first means that works: direct, helper, zeusd.

    ``direct`` does not check for the right first: the device's answer decides.
    """

    means: str = "auto"
    helper: tuple[str, ...] = HELPER
    zeusd_socket: str | None = None

    @staticmethod
    def of(settings: LimitMeansSettings) -> MeansSettings:
        """The settings from ``power.limits`` of the configuration. The helper's command is never configurable."""
        return MeansSettings(settings.means, zeusd_socket=settings.zeusd_socket)


def has_admin_right(procfs: Path = Path("/proc")) -> bool:
    """Whether NVML would allow this process to set limits: CAP_SYS_ADMIN in the initial user namespace.

    Root in a container has this capability only if the container has it.
    """
    status = (procfs / "self/status").read_text(encoding="ascii", errors="replace")
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    # The driver requires the capability in the initial namespace, the only one that maps all ids to themselves.
    mapping = (procfs / "self/uid_map").read_text(encoding="ascii").split()
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1) and mapping[:2] == ["0", "0"] and len(mapping) == 3


class Helper:
    """The helper that root owns, called through sudo."""

    name = "helper"

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command

    def missing(self, kind: str) -> str | None:
        """Why it cannot carry out requests; None if it can. If no helper is installed, sudo is not called."""
        program = self._command[-1]
        if not Path(program).exists():
            return f"{program} is not installed"
        try:
            done = self._run("check")
        except RightMissingError as error:
            return str(error)
        if done.returncode != 0:
            return f"you may not run `{' '.join(self._command)}`: {_last_line(done.stderr)}"
        if done.stdout.strip() != HELPER_VERSION:
            return f"{program} is not {HELPER_VERSION}: install it again"
        return None

    def carry_out(self, request: Request) -> None:
        """Set the limit. Raises LimitRefused, RightMissingError or SensorMissingError."""
        done = self._run(*request.words)
        if done.returncode == 0:
            return
        message = f"the helper refused: {_last_line(done.stderr)}"
        if done.returncode == 3:
            raise SensorMissingError(message)
        if done.returncode in (4, 5):
            raise LimitRefused(message)
        raise RightMissingError(message)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *words],
                capture_output=True,
                text=True,
                timeout=HELPER_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RightMissingError(f"the helper {self._command[-1]} did not run: {error}") from error


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


class Zeusd:
    """zeusd 0.4 or newer: HTTP over a unix socket (github.com/ml-energy/zeus, zeusd/src/routes)."""

    name = "zeusd"

    def __init__(self, path: str) -> None:
        self._path = path

    def missing(self, kind: str) -> str | None:
        """Why it cannot carry out this kind of request; None if it can."""
        if kind == "rapl":
            return "zeusd sets no processor limits"
        if not Path(self._path).exists():
            return f"zeusd does not run ({self._path} does not exist)"
        try:
            status, body = self._ask("GET", "/discover")
            groups = json.loads(body).get("enabled_api_groups", []) if status == 200 else None
        except (RightMissingError, ValueError) as error:
            return f"zeusd at {self._path} does not answer: {error}"
        if groups is None:
            return f"zeusd at {self._path} is older than 0.4: update it"
        return None if "gpu-control" in groups else "zeusd runs without its API group gpu-control: enable it"

    def carry_out(self, request: Request) -> None:
        """Set the limit. Raises LimitRefused or RightMissingError."""
        if request.index is None:
            raise LimitRefused("zeusd needs the GPU's index, which NVML did not report")
        status, body = self._ask("POST", _zeusd_path(request))
        if status == 200:
            return
        message = f"zeusd refused ({status}): {_last_line(body)}"
        if status in (401, 403):
            raise RightMissingError(message)
        raise LimitRefused(message)

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        from http.client import HTTPConnection, HTTPException

        token = os.environ.get(ZEUSD_TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection = HTTPConnection("localhost", timeout=ZEUSD_SECONDS)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(ZEUSD_SECONDS)
            connection.sock.connect(self._path)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(65536).decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise RightMissingError(f"zeusd at {self._path} cannot be reached: {error}") from error
        finally:
            connection.close()


def _zeusd_path(request: Request) -> str:
    gpu = f"gpu_ids={request.index}&block=true"
    if request.words[0] == "nvml-power":
        return f"/gpu/set_power_limit?{gpu}&power_limit_mw={request.words[2]}"
    if request.words[2] == "reset":
        return f"/gpu/reset_gpu_locked_clocks?{gpu}"
    low, high = request.words[2:4]
    return f"/gpu/set_gpu_locked_clocks?{gpu}&min_clock_mhz={low}&max_clock_mhz={high}"


# What carries out a request for which this process has no right.
Means = Helper | Zeusd


def zeusd_socket(settings: MeansSettings, environ: Mapping[str, str] = os.environ) -> str:
    """The socket of zeusd: from the settings, from zeus's variable, or the path that its packages use."""
    named = settings.zeusd_socket or environ.get(ZEUSD_VARIABLE)
    found = [path for path in ZEUSD_SOCKETS if Path(path).exists()]
    return named or (found[0] if found else ZEUSD_SOCKETS[0])


def choose(kind: str, settings: MeansSettings, direct: bool) -> tuple[Means | None, str | None]:
    """The means for one kind of request (nvml-power, nvml-clock, rapl), and the reason if there is none.

    A means of None without a reason stands for this process itself. ``direct`` tells whether it has the right.
    """
    if settings.means == "direct" or (settings.means == "auto" and direct):
        return None, None
    reasons = []
    for means in (Helper(settings.helper), Zeusd(zeusd_socket(settings))):
        if settings.means in ("auto", means.name):
            missing = means.missing(kind)
            if missing is None:
                return means, None
            reasons.append(missing)
    return None, "; ".join(reasons)


def grant_steps() -> tuple[str, ...]:
    """The lines that an administrator runs once, so that members of a group may set limits without root."""
    source = shlex.quote(str(Path(__file__).with_name("set_limit_helper.py")))
    try:
        user = shlex.quote(getpass.getuser())
    except (KeyError, OSError):  # the user id has no name, as in some containers
        user = "USER"
    rule = f"%{HELPER_GROUP} ALL=(root) NOPASSWD: {HELPER_PATH}"
    return (
        f"sudo groupadd --system --force {HELPER_GROUP} && sudo usermod -aG {HELPER_GROUP} {user}",
        f"sudo install -D -o root -g root -m 0755 {source} {HELPER_PATH}",
        f"echo '{rule}' | sudo tee {SUDOERS} && sudo chmod 0440 {SUDOERS} && sudo visudo -c",
        f"log in again; then `sudo -n {HELPER_PATH} check` prints `{HELPER_VERSION}`",
        "or, if zeusd 0.4 or newer runs with gpu-control, set ZEUSD_SOCK_PATH to its socket",
    )
