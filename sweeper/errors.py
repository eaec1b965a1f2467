"""Every error that sweeper raises on purpose, with the exit code of each.

::

    SweeperError                      1   never raised itself
    ├── UsageError                    2   a wrong word or value: names the key or file, and how to mend it
    │   ├── ConfigError               2   an unknown key, a wrong type, a value out of range
    │   ├── SpaceError                2   an empty or contradictory search space
    │   ├── ModelFileError            2   not a GGUF, truncated, or with a header that cannot be true
    │   ├── SweepBusyError            2   another process is writing this sweep, or tuning this device
    │   └── StaleRecordError          2   machine, driver, engine or model changed since the sweep
    ├── MissingError                  3   something that was asked for is not there
    │   ├── ModelMissingError         3
    │   ├── SensorMissingError        3
    │   ├── RightMissingError         3
    │   ├── EngineMissingError        3
    │   ├── SweepMissingError         3   no sweep of that name in the store
    │   └── StoreError                3   a folder, database or server that cannot be read or written
    ├── NoResultError                 4   the sweep ended with no trial that counts
    ├── VerifyError                   5   the configuration in force does not keep its promise
    └── TrialFailed                   -   one trial failed; the sweep goes on
        ├── OutOfMemory               -   on the host or on a device
        ├── EngineCrashed             -   the worker died: signal and last lines of the log
        ├── EngineTimeout             -   the worker did not answer in time
        ├── EngineRefused             -   the engine said no, cleanly
        ├── LimitRefused              -   a power or clock limit was not taken by the device
        └── ReadingFailed             -   the meter gave nothing that can be scored

Ctrl-C is ``KeyboardInterrupt`` and exit code 130. A message is one line that says what to do.
"""

from __future__ import annotations

from typing import Literal

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_NO_RESULT = 4
EXIT_VERIFY = 5
EXIT_STOPPED = 130


class SweeperError(Exception):
    """The root of the tree above."""

    exit_code = 1

    def __init__(self, message: str = "", mend: str | None = None) -> None:
        """``mend`` is the one line that mends it; the text of the error is ``message: mend``."""
        super().__init__(f"{message}: {mend}" if mend else message)
        self.what = message
        self.mend = mend


class UsageError(SweeperError):
    """A wrong word or value, mended by whoever typed it."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """An unknown key, a wrong type or a value out of range in the configuration."""


class SpaceError(UsageError):
    """A search space that is empty or contradicts itself."""


class ModelFileError(UsageError):
    """A file that is not a GGUF, is truncated, or has a header that cannot be true."""


class SweepBusyError(UsageError):
    """Another process holds the sweep or the device."""


class StaleRecordError(UsageError):
    """Machine, driver, engine build or model file changed since the sweep; ``--force`` overrides."""


class MissingError(SweeperError):
    """Something that was asked for is not there."""

    exit_code = EXIT_MISSING


class ModelMissingError(MissingError):
    """No such model file."""


class SensorMissingError(MissingError):
    """The power sensor that was asked for is not there or cannot be read."""


class RightMissingError(MissingError):
    """A right is missing; the message says how an administrator grants it."""


class EngineMissingError(MissingError):
    """The inference engine is not installed or cannot be loaded."""


class SweepMissingError(MissingError):
    """No sweep of that name is in the store."""


class StoreError(MissingError):
    """A folder, database or server cannot be read or written."""


class NoResultError(SweeperError):
    """The sweep ended with no trial that counts."""

    exit_code = EXIT_NO_RESULT


class VerifyError(SweeperError):
    """The configuration in force does not keep what was promised."""

    exit_code = EXIT_VERIFY


class TrialFailed(SweeperError):
    """One trial failed. The sweep records ``state`` and the message, and goes on.

    ``log_tail`` holds the last lines that the engine printed, oldest first.
    """

    state: Literal["failed", "out_of_memory"] = "failed"

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class OutOfMemory(TrialFailed):
    """The host or a device ran out of memory."""

    state: Literal["failed", "out_of_memory"] = "out_of_memory"


class EngineCrashed(TrialFailed):
    """The worker died; ``signal_name`` is for example ``SIGABRT``, or None where it exited by itself."""

    def __init__(self, message: str, log_tail: tuple[str, ...] = (), signal_name: str | None = None) -> None:
        super().__init__(message, log_tail)
        self.signal_name = signal_name


class EngineTimeout(TrialFailed):
    """The worker did not answer in time and was ended."""


class EngineRefused(TrialFailed):
    """The engine said no, cleanly: the message carries its own words."""


class LimitRefused(TrialFailed):
    """A power or clock limit was not taken by the device as asked."""


class ReadingFailed(TrialFailed):
    """The meter gave nothing that can be scored."""
