"""hwmon, batteries, plugs and commands: what each does where its device misbehaves."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path

import pytest
from fake_plugs import PASSWORD, FakePlug, serving
from sysfs_trees import as_plain_user, plant, write

from sweeper.doctor import examine
from sweeper.errors import ConfigError, ReadingFailed, SensorMissingError
from sweeper.meter.choose import find_meter
from sweeper.meter.sensors.battery import BatterySensor
from sweeper.meter.sensors.command import CommandSensor
from sweeper.meter.sensors.hwmon import HwmonSensor, find_devices
from sweeper.meter.sensors.plug import PlugSensor
from sweeper.power_settings import CommandSettings, PlugSettings, PowerSettings, check_settings
from sweeper.records import Caveat


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def _card(root: Path, number: int, address: str, **files: object) -> None:
    home = root / f"class/hwmon/hwmon{number}"
    device = root / "devices/pci0000:00" / address
    device.mkdir(parents=True)
    write(home / "name", "amdgpu")
    (home / "device").symlink_to(device)
    for name, value in files.items():
        write(home / name, value)


def test_a_card_is_found_by_its_pci_address_whatever_its_number(tmp_path: Path) -> None:
    _card(tmp_path, 4, "0000:0a:00.0", power1_average=30_000_000)
    _card(tmp_path, 1, "0000:03:00.0", power1_input=99_000_000)
    with pytest.raises(SensorMissingError, match=r"0000:03:00.0 \(amdgpu\), 0000:0a:00.0"):
        HwmonSensor(tmp_path).open()
    for address, watts in (("0000:0A:00.0", 30.0), ("0000:03:00.0", 99.0)):
        sensor = HwmonSensor(tmp_path, address)
        sensor.open()
        assert sensor.read().power_watts == watts
        assert sensor.source.device == address.lower()


def test_takes_the_power_file_that_has_values(tmp_path: Path) -> None:
    _card(tmp_path, 0, "0000:03:00.0", power1_average=0xFFFF, power1_input=77_000_000)
    (device,) = find_devices(tmp_path)
    assert device.files[0].name == "power1_input"


@pytest.mark.parametrize("mark", [0xFFFF, 0xFFFFFFFF, 65_535_000_000])
def test_all_ones_are_no_power(mark: int, tmp_path: Path) -> None:
    root = plant("amdgpu_card", tmp_path)
    sensor = HwmonSensor(root)
    sensor.open()
    write(root / "class/hwmon/hwmon2/power1_average", mark)
    with pytest.raises(ReadingFailed, match="missing"):
        sensor.read()


def test_a_card_tells_its_state(tmp_path: Path) -> None:
    sensor = HwmonSensor(plant("amdgpu_card", tmp_path))
    sensor.open()
    state = sensor.state()
    assert (state.temperature_celsius, state.clock_mhz, state.enforced_limit_watts) == (52.0, 2304.0, 355.0)


def test_arc_reads_the_card_and_follows_its_32_bits(tmp_path: Path) -> None:
    root = plant("arc_card", tmp_path)
    clock = Clock()
    sensor = HwmonSensor(root, clock=clock)
    sensor.open()
    assert "energy1_input" in sensor.source.interface
    counter = root / "class/hwmon/hwmon5/energy1_input"
    write(counter, round((2**18 - 60) * 1e6))
    first = sensor.read()
    clock.now += 1
    write(counter, 60_000_000)
    second = sensor.read()
    assert second.energy_joules is not None
    assert first.energy_joules is not None
    assert second.energy_joules - first.energy_joules == pytest.approx(120.0)
    assert second.epoch == first.epoch


def test_a_jetson_sums_the_rails_that_feed_the_module(tmp_path: Path) -> None:
    sensor = HwmonSensor(plant("jetson_orin", tmp_path))
    sensor.open()
    assert sensor.source.scope == "module"
    assert "VDDQ" not in (sensor.source.device or "")


def test_a_jetson_nano_has_one_rail_for_all(tmp_path: Path) -> None:
    home = tmp_path / "class/hwmon/hwmon1"
    write(home / "name", "ina3221")
    for number, (label, volts, amps) in enumerate(
        [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 400)], start=1
    ):
        write(home / f"in{number}_label", label)
        write(home / f"in{number}_input", volts)
        write(home / f"curr{number}_input", amps)
    sensor = HwmonSensor(tmp_path)
    sensor.open()
    assert sensor.read().power_watts == 6.0


def test_a_battery_on_the_charger_is_refused_and_one_plugged_in_later_fails(tmp_path: Path) -> None:
    root = plant("hybrid_laptop", tmp_path)
    status = root / "class/power_supply/BAT0/status"
    sensor = BatterySensor(root)
    sensor.open()
    assert sensor.read().power_watts == 27.758
    assert sensor.source.device == "BAT0"  # and not the mouse's
    write(status, "Charging")
    with pytest.raises(ReadingFailed, match="charger"):
        sensor.read()
    with pytest.raises(SensorMissingError, match="unplug the charger"):
        BatterySensor(root).open()


def test_a_battery_that_tells_current_and_voltage(tmp_path: Path) -> None:
    root = plant("hybrid_laptop", tmp_path)
    battery = root / "class/power_supply/BAT0"
    (battery / "power_now").unlink()
    write(battery / "current_now", -2_000_000)
    sensor = BatterySensor(root)
    sensor.open()
    assert sensor.read().power_watts == pytest.approx(2.0 * 10.459)


@pytest.mark.parametrize("kind", ["shelly", "tasmota"])
def test_a_plug_of_the_other_kind_is_refused(kind: str) -> None:
    other = {"shelly": "tasmota", "tasmota": "shelly"}[kind]
    with serving(FakePlug(kind, 40.0)) as plug:
        sensor = PlugSensor(PlugSettings(other, plug.url))
        with pytest.raises(SensorMissingError, match=r"power\.plug\.kind"):
            sensor.open()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"apower": null}', b'{"apower": -3.0}', b"\xff\xfe"])
def test_an_answer_without_power_fails_the_reading(body: bytes) -> None:
    with serving(FakePlug("shelly", 40.0)) as plug:
        sensor = PlugSensor(PlugSettings("shelly", plug.url))
        sensor.open()
        plug.body = body
        with pytest.raises(ReadingFailed):
            sensor.read()


def test_a_plug_that_does_not_answer_in_time_fails_the_reading() -> None:
    with serving(FakePlug("shelly", 40.0)) as plug:
        sensor = PlugSensor(PlugSettings("shelly", plug.url), timeout_seconds=0.2)
        sensor.open()
        plug.delay_seconds = 0.6
        with pytest.raises(ReadingFailed, match="timed out"):
            sensor.read()


@pytest.mark.parametrize(
    "body",
    [
        b'{"apower": NaN}',
        b'{"apower": 1e999}',
        b'{"apower": ' + b"9" * 400 + b"}",
        b'{"apower": ' + b"9" * 5000 + b"}",
        b"[" * 60000,
        b"<html>busy</html>",
    ],
)
def test_garbage_fails_the_reading_and_a_single_one_is_asked_again(body: bytes) -> None:
    with serving(FakePlug("shelly", 40.0)) as plug:
        sensor = PlugSensor(PlugSettings("shelly", plug.url))
        plug.bodies = [body]
        sensor.open()
        assert sensor.read().power_watts == 40.0
        plug.bodies = [body, body]
        with pytest.raises(ReadingFailed):
            sensor.read()


@pytest.mark.parametrize(
    "words", [b"SSH-2.0-dropbear_2019.78\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_a_port_that_speaks_no_http_is_no_plug(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        sensor = PlugSensor(PlugSettings("shelly", f"http://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(SensorMissingError, match="no shelly plug at"):
            sensor.open()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


LOGINS = [("shelly", "basic"), ("shelly", "digest MD5"), ("shelly", "digest SHA-256"), ("tasmota", "query")]


@pytest.mark.parametrize("user", ["", "admin@"])
@pytest.mark.parametrize(("kind", "login"), LOGINS)
def test_a_plug_with_a_password_gets_it_from_the_environment(
    kind: str, login: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_PLUG_PASSWORD", PASSWORD)
    with serving(FakePlug(kind, 40.0)) as plug:
        plug.login = login
        sensor = PlugSensor(PlugSettings(kind, plug.url.replace("//", f"//{user}")))
        sensor.open()
        assert sensor.read().power_watts == 40.0
        assert sensor.source.device == "127.0.0.1"


@pytest.mark.parametrize("given", [None, "wrong-one"])
@pytest.mark.parametrize(("kind", "login"), LOGINS)
def test_a_plug_that_refuses_says_that_it_wants_a_password_and_never_which(
    kind: str, login: str, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWEEPER_PLUG_PASSWORD", raising=False)
    if given:
        monkeypatch.setenv("SWEEPER_PLUG_PASSWORD", given)
    with serving(FakePlug(kind, 40.0)) as plug:
        plug.login = login
        with pytest.raises(SensorMissingError, match="SWEEPER_PLUG_PASSWORD") as caught:
            PlugSensor(PlugSettings(kind, plug.url)).open()
        assert "wants a password" in str(caught.value)
        assert "wrong-one" not in str(caught.value)


def test_an_older_tasmota_asks_for_a_password_with_status_200() -> None:
    with serving(FakePlug("tasmota", 40.0)) as plug:
        plug.body = b'{"WARNING":"Need user=<username>&password=<password>"}'
        with pytest.raises(SensorMissingError, match="SWEEPER_PLUG_PASSWORD"):
            PlugSensor(PlugSettings("tasmota", plug.url)).open()


@pytest.mark.parametrize(
    "url",
    ["http://admin:secret@10.0.0.5", "admin:secret@10.0.0.5", "ftp://admin:secret@h", "http://a:secret@[::1"],
)
@pytest.mark.parametrize("source", ["plug", "auto"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str, source: str) -> None:
    with pytest.raises(ConfigError, match="SWEEPER_PLUG_PASSWORD") as caught:
        check_settings(PowerSettings(source=source, plug=PlugSettings("shelly", url)))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1", "http://10.0.0.5:http", "http://10.0.0.5:70000", "10.0.0.5"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no http address"):
        check_settings(PowerSettings(source="plug", plug=PlugSettings("shelly", url)))


def test_a_proxy_of_the_environment_is_not_asked_for_a_plug(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(FakePlug("shelly", 40.0)) as plug:
        sensor = PlugSensor(PlugSettings("shelly", plug.url))
        sensor.open()
        assert sensor.read().power_watts == 40.0


@pytest.mark.parametrize(("gain", "is_parted"), [(1.0, False), (1.2, True), (0.0, True)])
def test_a_total_that_drifts_from_power_is_a_conflict(gain: float, is_parted: bool) -> None:
    clock = Clock()
    with serving(FakePlug("shelly", 500.0)) as plug:
        sensor = PlugSensor(PlugSettings("shelly", plug.url), clock=clock)
        sensor.open()
        for second in range(0, 180, 10):
            clock.now = 50.0 + second
            energy = f'"aenergy": {{"total": {1000 + gain * 500 * second / 3600:.3f}}}'
            plug.body = f'{{"apower": 500.0, {energy}}}'.encode()
            sensor.read()
        assert (Caveat.SENSOR_CONFLICT in sensor.caveats) is is_parted


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit('no meter on this bus')", "ended with code 1: no meter on this bus"),
        ("print('42 W')", "no number"),
        ("print(-1)", "no amount"),
        ("print('nan')", "no amount"),
        ("pass", "no number"),
        ("import time; time.sleep(5)", "did not answer within"),
    ],
)
def test_a_command_that_fails_is_refused_with_its_words(program: str, words: str) -> None:
    argv = [sys.executable, "-S", "-c", program]
    with pytest.raises(SensorMissingError, match=words):
        CommandSensor(CommandSettings(argv), timeout_seconds=1.0).open()


def test_a_command_is_labelled_by_its_name_and_runs_without_a_shell() -> None:
    with pytest.raises(SensorMissingError, match=r"printed '\$HOME', which is no number"):
        CommandSensor(CommandSettings(["/bin/echo", "$HOME"])).open()
    sensor = CommandSensor(CommandSettings(["/bin/echo", "first line\n7.5"], "watts", "yocto"))
    sensor.open()
    assert sensor.read().power_watts == 7.5
    assert (sensor.source.name, sensor.source.scope) == ("yocto", "custom")


def test_a_command_that_is_no_program_names_the_key() -> None:
    with pytest.raises(SensorMissingError, match=r"power\.command\.argv"):
        CommandSensor(CommandSettings(["/nowhere/meter"])).open()


def test_rights_on_hwmon_are_explained(open_folder: Path) -> None:
    _card(open_folder, 0, "0000:03:00.0", power1_average=1)
    (open_folder / "class/hwmon/hwmon0/power1_average").chmod(0o000)
    said = as_plain_user("sweeper.meter.sensors.hwmon", "HwmonSensor", open_folder)
    assert said.startswith("RightMissingError")
    assert "chmod a+r" in said


def test_a_driver_that_fails_is_no_missing_right(tmp_path: Path) -> None:
    _card(tmp_path, 0, "0000:03:00.0", power1_average=1)
    file = tmp_path / "class/hwmon/hwmon0/power1_average"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # reading its start is an EIO
    settings = PowerSettings(source="hwmon", sysfs_root=str(tmp_path))
    with pytest.raises(SensorMissingError, match="Input/output error: power=auto takes the best sensor"):
        find_meter(settings, tmp_path / "runs", gpu_used=True)


def test_a_sensor_at_0_watts_is_refused_with_the_reason(tmp_path: Path) -> None:
    _card(tmp_path, 0, "0000:03:00.0", power1_average=0)
    battery = tmp_path / "class/power_supply/BAT0"
    for name, value in {"type": "Battery", "status": "Discharging", "power_now": 0, "voltage_now": 1}.items():
        write(battery / name, value)
    for source in ("hwmon", "battery"):
        settings = PowerSettings(source=source, sysfs_root=str(tmp_path))
        with pytest.raises(SensorMissingError, match="shows 0 W, which no running device draws"):
            find_meter(settings, tmp_path / "runs", gpu_used=True)
    settings = PowerSettings(sysfs_root=str(tmp_path))
    meter, notes = find_meter(settings, tmp_path / "runs", gpu_used=True)
    assert meter.source.name == "estimate"
    assert any(note.startswith("hwmon: ") and "shows 0 W" in note for note in notes)
    findings = {f.name: f for f in examine(tmp_path / "runs", settings, seconds=0.1)}
    for name in ("hwmon 0000:03:00.0", "battery"):
        assert findings[name].status == "unusable"
        assert "0 W" in findings[name].detail


def test_a_card_at_0_watts_in_one_file_is_read_from_the_other(tmp_path: Path) -> None:
    _card(tmp_path, 0, "0000:03:00.0", power1_average=0, power1_input=77_000_000)
    (device,) = find_devices(tmp_path)
    assert device.files[0].name == "power1_input"


def test_a_battery_without_power_is_read_from_its_current(tmp_path: Path) -> None:
    battery = tmp_path / "class/power_supply/BAT0"
    for name, value in {"type": "Battery", "status": "Discharging", "power_now": 0}.items():
        write(battery / name, value)
    write(battery / "current_now", -1_000_000)
    write(battery / "voltage_now", 12_000_000)
    sensor = BatterySensor(tmp_path)
    sensor.open()
    assert sensor.read().power_watts == 12
