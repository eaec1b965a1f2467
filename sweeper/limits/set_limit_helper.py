#!/usr/bin/python3 -I
"""Sets one power or clock limit, as root, for people who are not: the whole program, to be read before use.

An administrator installs it once (`sweeper doctor` prints the steps) and lets a group run it through sudo.
It reads no file that its caller can write, starts no program and no shell, and takes these words only::

    sweeper-set-limit check
    sweeper-set-limit nvml-power UUID MILLIWATTS
    sweeper-set-limit nvml-clock UUID LOW_MHZ HIGH_MHZ
    sweeper-set-limit nvml-clock UUID reset
    sweeper-set-limit rapl ZONE constraint_N MICROWATTS

A value must lie in the device's own range, and never above the highest that this program found in force since
boot (kept in a folder of root's that a boot empties), or a GPU's default. Exit codes: 0 done; 2 wrong words;
3 no such device or call; 4 out of range; 5 the device refused. It needs only Python's standard library, 3.8
or newer.
"""

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import List, Optional, Tuple  # noqa: UP035 - the system's Python may be 3.8

VERSION = "sweeper-set-limit 1"
SYSFS = Path("/sys")
STATE = Path("/run/sweeper-set-limit")
LIBRARY = "libnvidia-ml.so.1"

UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
ZONE = re.compile(r"intel-rapl:[0-9]{1,3}")
CONSTRAINT = re.compile(r"constraint_[0-2]")
NUMBER = re.compile(r"[0-9]{1,10}")
USAGE = "wants check, nvml-power UUID MW, nvml-clock UUID LOW HIGH|reset, or rapl ZONE CONSTRAINT UW"
# Below a tenth of what was found a processor hardly answers: nobody sets that on purpose.
LEAST_SHARE = 0.1


class Refused(Exception):
    """Why nothing was set, with the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _word(pattern: "re.Pattern[str]", text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise Refused(2, f"{text!r} is no {what}")
    return text


def _number(text: str) -> int:
    return int(_word(NUMBER, text, "number"))


def _ceiling(state: Path, name: str, present: int) -> int:
    """The highest value seen in force since boot: nothing above it is ever set through this program.

    This program cannot raise it: a value above it was set by another of root's, and may be given back.
    """
    state.mkdir(mode=0o755, exist_ok=True)
    found = state.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Refused(5, f"{state} can be written by others")
    path = state / name.replace(":", "_")
    try:
        seen = int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        seen = 0
    if present > seen:
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(str(present), encoding="ascii")
        scratch.replace(path)
    return max(seen, present)


def _in_range(value: int, low: int, high: int, unit: str) -> None:
    if not low <= value <= high:
        raise Refused(4, f"{value} {unit} is not in {low} to {high} {unit}")


class Nvml:
    """The few calls of NVIDIA's library that are needed, through ctypes."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise Refused(3, f"{LIBRARY} is not there: no NVIDIA driver") from None
        self._call("nvmlInit_v2")

    def _call(self, name: str, *words: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise Refused(3, f"this driver has no {name}") from None
        code = function(*words)
        if code != 0:
            self._library.nvmlErrorString.restype = ctypes.c_char_p
            raise Refused(5, f"{name}: {self._library.nvmlErrorString(code).decode()}")

    def handle(self, uuid: str) -> ctypes.c_void_p:
        """The device of that UUID."""
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))
        return handle

    def numbers(self, name: str, handle: ctypes.c_void_p, count: int, *words: object) -> List[int]:  # noqa: UP006
        """What a call with ``count`` results answers."""
        results = [ctypes.c_uint() for _ in range(count)]
        self._call(name, handle, *words, *(ctypes.byref(result) for result in results))
        return [result.value for result in results]

    def set_power(self, handle: ctypes.c_void_p, milliwatts: int) -> None:
        """Set the power limit."""
        self._call("nvmlDeviceSetPowerManagementLimit", handle, ctypes.c_uint(milliwatts))

    def lock_clocks(self, handle: ctypes.c_void_p, clocks: Optional[Tuple[int, int]]) -> None:  # noqa: UP006, UP045
        """Lock the SM clock between two values, or free it."""
        if clocks is None:
            self._call("nvmlDeviceResetGpuLockedClocks", handle)
        else:
            self._call("nvmlDeviceSetGpuLockedClocks", handle, *map(ctypes.c_uint, clocks))


def _nvml_power(words: List[str], state: Path) -> None:  # noqa: UP006
    uuid, value = _word(UUID, words[0], "UUID of a GPU"), _number(words[1])
    nvml = Nvml()
    handle = nvml.handle(uuid)
    low, high = nvml.numbers("nvmlDeviceGetPowerManagementLimitConstraints", handle, 2)
    (present,) = nvml.numbers("nvmlDeviceGetPowerManagementLimit", handle, 1)
    (default,) = nvml.numbers("nvmlDeviceGetPowerManagementDefaultLimit", handle, 1)
    _in_range(value, low, min(high, max(default, _ceiling(state, uuid, present))), "mW")
    nvml.set_power(handle, value)


def _nvml_clock(words: List[str]) -> None:  # noqa: UP006
    uuid = _word(UUID, words[0], "UUID of a GPU")
    clocks = None if words[1:] == ["reset"] else (_number(words[1]), _number(words[-1]))
    if clocks is not None and len(words) != 3:
        raise Refused(2, "nvml-clock wants UUID LOW_MHZ HIGH_MHZ, or UUID reset")
    nvml = Nvml()
    handle = nvml.handle(uuid)
    if clocks is not None:
        (highest,) = nvml.numbers("nvmlDeviceGetMaxClockInfo", handle, 1, ctypes.c_uint(1))
        _in_range(clocks[1], 1, highest, "MHz")
        _in_range(clocks[0], 1, clocks[1], "MHz")
    nvml.lock_clocks(handle, clocks)


def _rapl(words: List[str], sysfs: Path, state: Path) -> None:  # noqa: UP006
    zone = _word(ZONE, words[0], "RAPL zone")
    constraint = _word(CONSTRAINT, words[1], "RAPL constraint")
    value = _number(words[2])
    path = sysfs / "class/powercap" / zone / f"{constraint}_power_limit_uw"
    try:
        present = int(path.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        raise Refused(3, f"{path} cannot be read") from None
    high = _ceiling(state, f"{zone}-{constraint}", present)
    _in_range(value, int(high * LEAST_SHARE), high, "uW")
    try:
        descriptor = os.open(str(path), os.O_WRONLY)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(f"{value}\n".encode())
    except OSError as error:
        raise Refused(5, f"{path}: {error.strerror}") from None


def main(words: List[str], sysfs: Path = SYSFS, state: Path = STATE) -> int:  # noqa: UP006
    """Carry out one request; the exit code."""
    try:
        if words == ["check"]:
            sys.stdout.write(VERSION + "\n")
        elif len(words) == 3 and words[0] == "nvml-power":
            _nvml_power(words[1:], state)
        elif len(words) in (3, 4) and words[0] == "nvml-clock":
            _nvml_clock(words[1:])
        elif len(words) == 4 and words[0] == "rapl":
            _rapl(words[1:], sysfs, state)
        else:
            sys.stderr.write(f"sweeper-set-limit: {USAGE}\n")
            return 2
    except Refused as refused:
        sys.stderr.write(f"sweeper-set-limit: {refused}\n")
        return refused.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
