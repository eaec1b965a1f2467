"""Reads small files of sysfs and procfs."""

from __future__ import annotations

from pathlib import Path

from sweeper.errors import ReadingFailed

# Names under which the kernel shows a processor's own temperature.
_THERMAL_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm")
_CHIPS = ("coretemp", "k10temp", "zenpower")


def read_text(path: Path) -> str | None:
    """The file's text without its newline, or None if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The file's whole number, or None if it is missing, unreadable or not a number."""
    try:
        return must_read_int(path)
    except ReadingFailed:
        return None


def must_read_int(path: Path) -> int:
    """The file's whole number. Raises ReadingFailed if it contains none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ReadingFailed(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return int(text, 0)
    except ValueError as error:
        found = f"contains {text[:40]!r} instead of a number" if text else "is empty"
        raise ReadingFailed(f"{path} {found}") from error


def may_read(path: Path) -> bool:
    """Whether this process has the right to read the file. Only trying shows it.

    A driver or a container may fail in other ways, which reading the value reports.
    """
    try:
        path.read_bytes()
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def package_temperature(sysfs_root: Path) -> float | None:
    """The temperature of the hottest processor package in °C, from thermal zones, else hwmon's chips, else None."""
    zones = sorted((sysfs_root / "class/thermal").glob("thermal_zone*"))
    found = [read_int(zone / "temp") for zone in zones if read_text(zone / "type") in _THERMAL_ZONES]
    if not found:
        chips = sorted((sysfs_root / "class/hwmon").glob("hwmon*"))
        found = [read_int(chip / "temp1_input") for chip in chips if read_text(chip / "name") in _CHIPS]
    return max((value / 1000 for value in found if value is not None), default=None)
