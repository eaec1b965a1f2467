"""Every error that sweeper raises on purpose, with its exit code.

::

    SweeperError                      -   the base class; never raised directly
    ├── UsageError                    2   a wrong argument or value: the message names the key or file, and the fix
    │   ├── ConfigError               2   an unknown key, a wrong type, a value out of range
    │   ├── SpaceError                2   an empty or contradictory search space
    │   ├── ModelFileError            2   not a GGUF, truncated, or with an impossible header
    │   ├── SweepBusyError            2   another process writes this sweep, or tunes this device
    │   └── StaleRecordError          2   machine, driver, engine or model changed since the sweep
    ├── MissingError                  3   something that the command needs is missing (or a limit is not as found)
    │   ├── ModelMissingError         3
    │   ├── SensorMissingError        3
    │   ├── RightMissingError         3
    │   ├── EngineMissingError        3
    │   ├── SweepMissingError         3   no sweep of that name in the store
    │   └── StoreError                3   a folder, database or server that cannot be read or written
    ├── NoResultError                 4   the sweep ended without a valid trial
    ├── VerifyError                   5   the server is slower than promised
    ├── QualityUnknown                -   the reference of quality cannot be run; a sweep goes on without its figures
    └── TrialFailed                   4   one trial failed; a sweep continues, other commands end
        ├── OutOfMemory               -   on the host or on a device
        ├── EngineCrashed             -   the worker died: its signal and the last lines of its log
        ├── EngineTimeout             -   the worker did not answer in time
        ├── EngineRefused             -   the engine refused the request cleanly
        ├── LimitRefused              -   a device did not accept a power or clock limit
        ├── ReadingFailed             -   the meter gave no usable reading
        └── TimeOver                  -   the time of the whole job is over; it says nothing about the configuration

Ctrl-C raises ``KeyboardInterrupt``; the exit code is 130. Any other exception is a fault of sweeper's own: the exit
code is 70, and ``cli.main`` writes the traceback to a file. Each message is one line: what happened, then what to do.
"""

from __future__ import annotations

from typing import Literal

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_NO_RESULT = 4
EXIT_VERIFY = 5
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h
EXIT_STOPPED = 130


class SweeperError(Exception):
    """The base class of all errors above."""

    exit_code = EXIT_FAULT

    def __init__(self, message: str = "", mend: str | None = None) -> None:
        """``mend`` is the one line that mends it; the text of the error is ``message: mend``."""
        super().__init__(f"{message}: {mend}" if mend else message)
        self.what = message
        self.mend = mend


class UsageError(SweeperError):
    """The user gave a wrong argument or value."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """An unknown key, a wrong type or a value out of range in the configuration."""


class SpaceError(UsageError):
    """A search space that is empty or contradicts itself."""


class ModelFileError(UsageError):
    """The file is not a GGUF, is truncated, or has an impossible header."""


class SweepBusyError(UsageError):
    """Another process holds the sweep or the device."""


class StaleRecordError(UsageError):
    """Machine, driver, engine build or model file changed since the sweep; ``--force`` overrides."""


class MissingError(SweeperError):
    """Something that the command needs is missing."""

    exit_code = EXIT_MISSING


class ModelMissingError(MissingError):
    """The model file does not exist."""


class SensorMissingError(MissingError):
    """The requested power sensor does not exist or cannot be read."""


class RightMissingError(MissingError):
    """A right is missing. The message says how an administrator grants it."""


class EngineMissingError(MissingError):
    """The inference engine is not installed or cannot be loaded."""


class SweepMissingError(MissingError):
    """The store has no sweep of that name."""


class StoreError(MissingError):
    """A folder, database or server cannot be read or written."""


class NoResultError(SweeperError):
    """The sweep ended without a valid trial."""

    exit_code = EXIT_NO_RESULT


class VerifyError(SweeperError):
    """The running server is slower than the sweep promised."""

    exit_code = EXIT_VERIFY


class QualityUnknown(SweeperError):
    """The reference cannot be run, so nothing can be compared with it. The message is the reason."""


class TrialFailed(SweeperError):
    """One trial failed. The sweep records ``state`` and the message, and continues.

    ``log_tail`` holds the last lines that the engine printed, oldest first.
    """

    exit_code = EXIT_NO_RESULT  # of a command that measures without a sweep, such as verify
    state: Literal["failed", "out_of_memory"] = "failed"

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class OutOfMemory(TrialFailed):
    """The host or a device ran out of memory."""

    state: Literal["failed", "out_of_memory"] = "out_of_memory"


class EngineCrashed(TrialFailed):
    """The worker died. ``signal_name`` is for example ``SIGABRT``, or None if the worker exited by itself."""

    def __init__(self, message: str, log_tail: tuple[str, ...] = (), signal_name: str | None = None) -> None:
        super().__init__(message, log_tail)
        self.signal_name = signal_name


class EngineTimeout(TrialFailed):
    """The worker did not answer in time, so sweeper ended it."""


class EngineRefused(TrialFailed):
    """The engine refused the request cleanly. The message contains its own words."""


class LimitRefused(TrialFailed):
    """A device did not accept the requested power or clock limit."""


class ReadingFailed(TrialFailed):
    """The meter gave no usable reading."""


class TimeOver(TrialFailed):
    """A context could not be filled in the time that was left. The sweep records no trial.

    ``more_seconds`` is the time that the rest of the context would take; 0 if it is not known.
    """

    def __init__(self, message: str, more_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.more_seconds = more_seconds
