"""Setting limits without root: the helper as a program, zeusd as a server on a unix socket."""

import json
import os
import re
import shlex
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_nvml import RTX_4090, FakeNvml

from sweeper.errors import LimitRefused
from sweeper.limits.base import Action, LimitControl
from sweeper.limits.control import find_limits
from sweeper.limits.restore import restore
from sweeper.limits.rights import (
    HELPER_PATH,
    Helper,
    MeansSettings,
    Zeusd,
    choose,
    grant_steps,
    has_admin_right,
    zeusd_socket,
)
from sweeper.power_settings import PowerSettings

HELPER_SOURCE = Path(__file__).parents[2] / "sweeper/limits/set_limit_helper.py"


@pytest.fixture
def helper(tmp_path: Path) -> tuple[str, ...]:
    """The helper as installed, but for its folders, and with the right that sudo would give it."""
    program, source = tmp_path / "sweeper-set-limit", tmp_path / "helper.py"
    # Through a shell: the path of this Python may hold a space, which no #! line can.
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(source))} "$@"\n')
    source.write_text(
        "import os, runpy, sys\nfrom pathlib import Path\n"
        "os.environ['FAKE_NVML_PRIVILEGED'] = '1'\n"
        f"helper = runpy.run_path({str(HELPER_SOURCE)!r})\n"
        f"here = Path({str(tmp_path)!r})\n"
        "sys.exit(helper['main'](sys.argv[1:], here / 'sys', here / 'state'))\n"
    )
    program.chmod(0o755)
    return (str(program),)


@pytest.fixture
def unprivileged(make_fake_nvml: Callable[..., FakeNvml]) -> Iterator[FakeNvml]:
    """A GPU that only privileged processes may set, under this process's pynvml."""
    nvml = make_fake_nvml(RTX_4090)
    nvml.gpus[0].deny_setting(but_privileged=True)
    with nvml.in_process():
        yield nvml


def find(folder: Path, means: MeansSettings) -> LimitControl:
    (folder / "locks").mkdir(exist_ok=True)
    settings = PowerSettings(sysfs_root=str(folder / "sys"))
    return find_limits(folder / "mlruns", settings, means, folder / "locks", environ={})


def run(helper: tuple[str, ...], nvml: FakeNvml, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | nvml.environment()
    return subprocess.run([*helper, *words], capture_output=True, text=True, env=environment, check=False)


def test_a_sweep_without_the_right_sets_through_the_helper(
    unprivileged: FakeNvml, helper: tuple[str, ...], tmp_path: Path
) -> None:
    gpu = unprivileged.gpus[0]
    with find(tmp_path, MeansSettings(means="helper", helper=helper)) as limits:
        assert limits.set("power_limit_watts", 220).enforced == 220
        limits.set("clock_limit_mhz", 1500)
        assert gpu.locked_clocks_mhz == (210, 1500)
    assert (gpu.power_limit_watts, gpu.locked_clocks_mhz) == (450, None)


def test_the_guardian_uses_the_helper_too(
    unprivileged: FakeNvml, helper: tuple[str, ...], tmp_path: Path
) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from sweeper.limits.control import find_limits
from sweeper.limits.rights import MeansSettings
from sweeper.power_settings import PowerSettings
with find_limits(Path({str(tmp_path / "mlruns")!r}), PowerSettings(sysfs_root={str(tmp_path)!r}),
                 MeansSettings("helper", {helper!r}), Path({str(tmp_path)!r}), environ={{}}) as limits:
    limits.set("power_limit_watts", 200)
    guardian = limits._guardian.process.pid
    print(guardian, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | unprivileged.environment()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    gpu = unprivileged.gpus[0]
    wait_until(
        lambda: gpu.power_limit_watts == 450 and not list((tmp_path / "mlruns/journal").glob("*.jsonl"))
    )
    assert gpu.power_limit_watts == 450


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    from time import monotonic, sleep

    deadline = monotonic() + seconds
    while not condition() and monotonic() < deadline:
        sleep(0.01)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "wants check"),
        (("nvml-power", "GPU-1; rm -rf /", "200000"), 2, "no UUID"),
        (("nvml-power", "GPU-fa4e0000-0000-4000-8000-000000000000", "-1"), 2, "no number"),
        (("nvml-power", "GPU-fa4e0000-0000-4000-8000-000000000000", "100000"), 4, "150000 to 450000 mW"),
        (("nvml-power", "GPU-fa4e0000-0000-4000-8000-000000000000", "500000"), 4, "150000 to 450000 mW"),
        (
            ("nvml-power", "GPU-fa4e0000-0000-4000-8000-0000000000ff", "200000"),
            5,
            "nvmlDeviceGetHandleByUUID",
        ),
        (("nvml-clock", "GPU-fa4e0000-0000-4000-8000-000000000000", "210", "9000"), 4, "MHz"),
        (("nvml-clock", "GPU-fa4e0000-0000-4000-8000-000000000000", "900", "300"), 4, "MHz"),
        (("nvml-clock", "GPU-fa4e0000-0000-4000-8000-000000000000", "900"), 2, "wants UUID"),
        (("rapl", "../../etc", "constraint_0", "1"), 2, "no RAPL zone"),
        (("rapl", "intel-rapl:0", "constraint_0/../enabled", "1"), 2, "no RAPL constraint"),
        (("rapl", "intel-rapl:7", "constraint_0", "1"), 3, "cannot be read"),
        (("rapl", "intel-rapl:0", "constraint_0", "44000001"), 4, "4400000 to 44000000 uW"),
        (("rapl", "intel-rapl:0", "constraint_0", "1"), 4, "uW"),
        (("check", "more"), 2, "wants check"),
    ],
)
def test_the_helper_refuses_in_words(
    helper: tuple[str, ...],
    unprivileged: FakeNvml,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    package(tmp_path / "sys")
    done = run(helper, unprivileged, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert unprivileged.gpus[0].sets == 0
    assert (
        tmp_path / "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw"
    ).read_text() == "44000000\n"


def package(sysfs: Path) -> Path:
    folder = sysfs / "class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "constraint_0_power_limit_uw").write_text("44000000\n")
    return folder / "constraint_0_power_limit_uw"


def test_the_helper_gives_back_what_it_found_and_nothing_above(
    helper: tuple[str, ...], unprivileged: FakeNvml, tmp_path: Path
) -> None:
    path = package(tmp_path / "sys")
    for value in ("20000000", "44000000"):
        assert run(helper, unprivileged, "rapl", "intel-rapl:0", "constraint_0", value).returncode == 0
        assert path.read_text().split()[0] == value
    path.write_text("64000000\n")  # an administrator raises it
    assert run(helper, unprivileged, "rapl", "intel-rapl:0", "constraint_0", "30000000").returncode == 0
    assert run(helper, unprivileged, "rapl", "intel-rapl:0", "constraint_0", "64000000").returncode == 0
    assert run(helper, unprivileged, "rapl", "intel-rapl:0", "constraint_0", "64000001").returncode == 4


def test_the_helper_trusts_no_state_that_others_can_write(
    helper: tuple[str, ...], unprivileged: FakeNvml, tmp_path: Path
) -> None:
    package(tmp_path / "sys")
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    done = run(helper, unprivileged, "rapl", "intel-rapl:0", "constraint_0", "20000000")
    assert (done.returncode, "written by others" in done.stderr) == (5, True)


def test_the_helper_uses_the_standard_library_only() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HELPER_SOURCE), "check"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "sweeper-set-limit 1\n"
    assert HELPER_SOURCE.read_text().startswith("#!/usr/bin/python3 -I\n")


def test_a_helper_that_is_not_there_or_not_the_one(tmp_path: Path) -> None:
    assert (
        Helper(("sudo", "-n", str(tmp_path / "none"))).missing("rapl")
        == f"{tmp_path / 'none'} is not installed"
    )
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho something else\n")
    other.chmod(0o755)
    assert "install it again" in str(Helper((str(other),)).missing("rapl"))
    other.write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    assert "a password is required" in str(Helper((str(other),)).missing("rapl"))


class FakeZeusd(socketserver.ThreadingUnixStreamServer):
    """What zeusd 0.4 answers on its socket, as its own routes and tests say; it sets the fake GPU as root."""

    daemon_threads = True

    def __init__(self, path: Path, nvml: FakeNvml, groups: list[str] | None) -> None:
        self.nvml, self.groups = nvml, groups
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        super().__init__(str(path), ZeusdHandler)


class ZeusdHandler(BaseHTTPRequestHandler):
    server: FakeZeusd
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        if self.path != "/discover" or self.server.groups is None:
            return self.answer(404)
        body = {"gpu_ids": [0], "cpu_ids": [], "dram_available": [], "enabled_api_groups": self.server.groups}
        return self.answer(200, json.dumps(body))

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        words = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.asked.append(url.path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if words.pop("block") != "true" or words.pop("gpu_ids") != "0":
            return self.answer(400, "Invalid request")
        gpu = self.server.nvml.gpus[0]
        if url.path == "/gpu/set_power_limit":
            milliwatts = int(words["power_limit_mw"])
            if not 150_000 <= milliwatts <= 600_000:
                return self.answer(400, "Invalid request: 150000-600000 mW")
            gpu.power_limit_watts = milliwatts / 1000
        elif url.path == "/gpu/set_gpu_locked_clocks":
            gpu.locked_clocks_mhz = (int(words["min_clock_mhz"]), int(words["max_clock_mhz"]))
        elif url.path == "/gpu/reset_gpu_locked_clocks":
            gpu.locked_clocks_mhz = None
        else:
            return self.answer(404)
        return self.answer(200)


@pytest.fixture
def zeusd(unprivileged: FakeNvml, tmp_path: Path) -> Iterator[Callable[..., FakeZeusd]]:
    servers = []

    def start(groups: list[str] | None) -> FakeZeusd:
        server = FakeZeusd(tmp_path / "zeusd.sock", unprivileged, groups)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_sweep_sets_through_zeusd(
    unprivileged: FakeNvml, zeusd: Callable[..., FakeZeusd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = zeusd(["gpu-read", "gpu-control"])
    monkeypatch.setenv("ZEUSD_TOKEN", "abc")
    gpu = unprivileged.gpus[0]
    means = MeansSettings(means="zeusd", zeusd_socket=str(tmp_path / "zeusd.sock"))
    with find(tmp_path, means) as limits:
        assert limits.set("power_limit_watts", 220).enforced == 220
        limits.set("clock_limit_mhz", 1500)
        assert gpu.locked_clocks_mhz == (210, 1500)
    assert (gpu.power_limit_watts, gpu.locked_clocks_mhz) == (450, None)
    assert set(server.asked) == {
        "/gpu/set_power_limit",
        "/gpu/set_gpu_locked_clocks",
        "/gpu/reset_gpu_locked_clocks",
    }
    assert server.tokens == {"Bearer abc"}


@pytest.mark.parametrize(
    ("groups", "says"), [(None, "older than 0.4"), (["gpu-read"], "gpu-control"), (["gpu-control"], None)]
)
def test_zeusd_is_asked_what_it_may_do(
    zeusd: Callable[..., FakeZeusd], tmp_path: Path, groups: list[str] | None, says: str | None
) -> None:
    zeusd(groups)
    missing = Zeusd(str(tmp_path / "zeusd.sock")).missing("nvml-power")
    assert missing is None if says is None else says in str(missing)


def test_zeusd_that_is_away_or_hangs_up(tmp_path: Path) -> None:
    assert "does not run" in str(Zeusd(str(tmp_path / "none")).missing("nvml-power"))
    (tmp_path / "file").write_text("")
    assert "does not answer" in str(Zeusd(str(tmp_path / "file")).missing("nvml-power"))
    assert "no processor" in str(Zeusd(str(tmp_path / "none")).missing("rapl"))
    assert zeusd_socket(MeansSettings(), {"ZEUSD_SOCK_PATH": "/a/b"}) == "/a/b"


def test_without_any_right_limits_leave_the_space_and_say_why(unprivileged: FakeNvml, tmp_path: Path) -> None:
    means = MeansSettings(
        means="helper", helper=(str(tmp_path / "none"),), zeusd_socket=str(tmp_path / "none.sock")
    )
    limits = find(tmp_path, means)
    assert limits.ranges() == {}
    assert set(limits.refusals()) == {"power_limit_watts", "clock_limit_mhz"}
    for reason in map(str, limits.refusals().values()):
        assert re.search(r"needs root, CAP_SYS_ADMIN or a helper .* `sweeper doctor`", reason)
        assert "\n" not in reason
    with limits:
        assert limits.set("power_limit_watts", None).requested is None
        with pytest.raises(LimitRefused, match="sweeper doctor"):
            limits.set("power_limit_watts", 300)
    assert unprivileged.gpus[0].sets == 0


def test_the_first_means_that_works_is_taken(tmp_path: Path, helper: tuple[str, ...]) -> None:
    settings = MeansSettings(helper=helper, zeusd_socket=str(tmp_path / "none"))
    assert choose("nvml-power", settings, direct=True) == (None, None)
    means, reason = choose("nvml-power", settings, direct=False)
    assert (means is not None and means.name, reason) == ("helper", None)
    means, reason = choose("rapl", MeansSettings(helper=(str(tmp_path / "none"),)), direct=False)
    assert means is None
    assert "not installed" in str(reason)
    assert "zeusd" in str(reason)


@pytest.mark.parametrize(
    ("capabilities", "mapping", "right"),
    [
        ("000001ffffffffff", "0 0 4294967295", True),
        ("00000000a80425fb", "0 0 4294967295", False),  # root in a plain container
        ("0000000000000000", "0 0 4294967295", False),
        ("000001ffffffffff", "0 100000 65536", False),  # root of a user namespace
    ],
)
def test_the_right_is_read_from_the_kernel(
    tmp_path: Path, capabilities: str, mapping: str, right: bool
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    (tmp_path / "self/uid_map").write_text(f"         {mapping}\n")
    assert has_admin_right(tmp_path) is right


def test_steps_name_the_files_that_there_are() -> None:
    steps = grant_steps()
    assert any(str(HELPER_SOURCE) in step and HELPER_PATH in step for step in steps)
    assert any("NOPASSWD" in step and "visudo -c" in step for step in steps)
    assert any("zeusd" in step for step in steps)
    assert all("\n" not in step for step in steps)
    assert stat.S_ISREG(HELPER_SOURCE.stat().st_mode)


def test_restore_takes_its_means_from_its_user_and_never_from_the_journal(
    unprivileged: FakeNvml, helper: tuple[str, ...], tmp_path: Path
) -> None:
    from sweeper.limits.journal import Journal
    from sweeper.limits.knob import KnobId

    gpu = unprivileged.gpus[0]
    journal = Journal.create(tmp_path / "mlruns", {KnobId("nvml_power", gpu.uuid): 450_000})
    journal.intent(KnobId("nvml_power", gpu.uuid), 200_000)
    journal.close()
    gpu.power_limit_watts = 200
    assert str(helper[0]) not in journal.path.read_text()
    (tmp_path / "locks").mkdir()
    words = (tmp_path / "mlruns", MeansSettings(means="direct"), tmp_path / "sys", tmp_path / "locks")
    assert [outcome.action for outcome in restore(*words)] == [Action.FAILED]
    words = (tmp_path / "mlruns", MeansSettings("helper", helper), tmp_path / "sys", tmp_path / "locks")
    assert [outcome.action for outcome in restore(*words)] == [Action.RESTORED]
    assert gpu.power_limit_watts == 450


def _left_by_a_killed_sweep(nvml: FakeNvml, root: Path) -> None:
    from sweeper.limits.journal import Journal
    from sweeper.limits.knob import KnobId

    knob = KnobId("nvml_power", nvml.gpus[0].uuid)
    journal = Journal.create(root, {knob: 450_000})
    journal.intent(knob, 200_000)
    journal.close()
    text = journal.path.read_text().replace(
        f'"pid": {os.getpid()}', '"pid": 4194303'
    )  # a process that is gone
    journal.path.write_text(text)
    nvml.gpus[0].power_limit_watts = 200


def test_restore_sets_by_the_means_of_its_command_line(
    unprivileged: FakeNvml,
    zeusd: Callable[..., FakeZeusd],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sweeper.cli import main

    server = zeusd(["gpu-control"])
    root = tmp_path / "mlruns"
    _left_by_a_killed_sweep(unprivileged, root)
    socket = f"power.limits.zeusd_socket={tmp_path / 'zeusd.sock'}"
    assert main(["restore", "--root", str(root), "power.limits.means=zeusd", socket]) == 0
    assert server.asked == ["/gpu/set_power_limit"]
    assert unprivileged.gpus[0].power_limit_watts == 450
    assert "restored" in capsys.readouterr().out
    assert main(["restore", "--root", str(root), "power.limits.means=sudo"]) == 2


def test_doctor_looks_with_the_means_of_the_configuration(
    unprivileged: FakeNvml, zeusd: Callable[..., FakeZeusd], tmp_path: Path
) -> None:
    from sweeper.power_settings import LimitMeansSettings

    zeusd(["gpu-control"])
    (tmp_path / "locks").mkdir()
    for means, has_range in (("zeusd", True), ("helper", False)):
        limits = LimitMeansSettings(means, str(tmp_path / "zeusd.sock"))
        settings = PowerSettings(sysfs_root=str(tmp_path), limits=limits)
        found = find_limits(tmp_path / "mlruns", settings, lock_folder=tmp_path / "locks", environ={})
        assert ("power_limit_watts" in found.ranges()) == has_range


def test_a_standing_limit_is_set_by_the_means_of_its_sweep(
    unprivileged: FakeNvml, zeusd: Callable[..., FakeZeusd], tmp_path: Path
) -> None:
    """What `apply --power-limit` sets and `rollback` undoes."""
    from sweeper.limits.standing_limit import own_bench, standing_limit
    from sweeper.power_settings import LimitMeansSettings

    server = zeusd(["gpu-control"])
    settings = PowerSettings(limits=LimitMeansSettings("zeusd", str(tmp_path / "zeusd.sock")))
    with own_bench(settings) as machine:
        assert standing_limit(machine, unprivileged.gpus[0].uuid).set(300) == 300
    assert server.asked == ["/gpu/set_power_limit"]
