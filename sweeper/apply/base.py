"""What the targets of ``sweeper apply`` share: the request, the draft and the plan.

A target computes text and touches nothing. ``journal.py`` writes, and undoes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sweeper import locks
from sweeper.apply.names import check_text
from sweeper.errors import StoreError, UsageError
from sweeper.parameters import DEFAULTS, SERVER_TUNABLES, Configuration
from sweeper.records import SweepRecord, TrialRecord

LOOPBACK = "127.0.0.1"  # servers answer this machine alone, unless the user configures them otherwise


@dataclass(frozen=True, slots=True)
class Request:
    """The input of a target: one trial of one sweep, a name and a port."""

    record: SweepRecord
    trial: TrialRecord
    model_path: str  # absolute; NO_MODEL of `run.py` for a simulated sweep
    name: str  # by which clients ask for the model
    port: int
    folder: Path  # where a target's files go when no file is named
    file: Path | None = None  # the target's main file, if the user named it
    port_is_named: bool = False  # the user chose the port, so that no target may take another one

    @property
    def configuration(self) -> Configuration:
        """The configuration to apply."""
        return self.trial.configuration

    @property
    def draft_path(self) -> str | None:
        """The absolute path of the draft model that the configuration loads; None without one."""
        file = self.record.model.draft_file(self.configuration)
        return None if file is None else str(Path(file.path).expanduser().absolute())

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the engine's worker, for example OMP_WAIT_POLICY: the server needs them too."""
        return environment_of(self.record)

    def target_file(self, default: str) -> Path:
        """The file that the user named, else ``default`` in the folder; absolute."""
        path = self.file if self.file is not None else self.folder / default
        return path.expanduser().absolute()


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file's content before and after the apply. ``before`` is None if there is no file yet."""

    path: Path
    before: bytes | None
    after: bytes
    says: str = ""  # what the file is for, or which parts of it stay


@dataclass(frozen=True, slots=True)
class Command:
    """A command for the user to run; ``says`` is what it does."""

    says: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A target's answer: files to write, commands to run afterwards, and what the user must know."""

    files: tuple[FileChange, ...] = ()
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()
    snippet: str | None = None  # text to paste, for a target without a file
    undo: tuple[str, ...] = ()  # what the user must undo after a rollback, since it lies outside the files
    port: int | None = None  # the port that the target took because another program has the default one
    sets_power_limit: bool = False  # by a file or command, so that no note has to ask for it


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """What an apply would change, computed and not yet done."""

    target: str
    pick: str  # as the user typed it; empty for a trial's number
    request: Request
    draft: Draft
    limit_device: str | None = None
    limit_watts: int | None = None  # None: writing this plan sets no limit

    @property
    def changes_nothing(self) -> bool:
        """Every file has its new content already, and there is no limit to set."""
        return self.limit_watts is None and all(file.before == file.after for file in self.draft.files)


@dataclass(frozen=True, slots=True)
class Target:
    """One place where a recommended configuration goes.

    ``draft`` reads the files that it merges into and changes nothing. It raises UsageError for a name, path or
    file that the format cannot hold, and MissingError for a folder that the target needs.
    """

    name: str  # as typed after ``--to``
    draft: Callable[[Request], Draft]
    default_port: int = 8080
    default_folder: Path = Path()  # where its files go when the user names neither a file nor a folder


def environment_of(record: SweepRecord) -> dict[str, str]:
    """The variables that the sweep set for the engine's worker. Raises UsageError as `check_text` does."""
    engine = record.config.get("engine")
    given = engine.get("environment") if isinstance(engine, Mapping) else None
    if not isinstance(given, Mapping):
        return {}
    return {
        check_text("an environment variable", str(name)): check_text(f"the variable {name}", str(value))
        for name, value in given.items()
    }


# The contexts of the bundled workloads, which nobody asked for; a test compares them with conf/workload.
_WORKLOAD_CONTEXTS = {"quick": 2048, "chat": 4096, "code": 8192, "long_context": 0}


def asked_for_context(record: SweepRecord) -> bool:
    """Whether the context length was part of the question: searched, or set by the user."""
    space = record.config.get("space")
    given = space.get("n_ctx", "auto") if isinstance(space, Mapping) else "auto"
    default = _WORKLOAD_CONTEXTS.get(record.workload.name)
    return "n_ctx" in record.space or given != "auto" or record.workload.n_ctx != default


def unfinished(record: SweepRecord, root: Path | None) -> str | None:
    """What became of a sweep without an end: it runs, or its process is gone; None if it ended."""
    if record.state != "running":
        return None
    if root is None:
        return "this sweep has not ended"
    if locks.is_held(locks.of_sweep(root, record.sweep)):
        return "this sweep is still running"
    return "this sweep was cut off before its end, and the same command resumes it"


def read_existing(path: Path) -> bytes | None:
    """The bytes of a file, or None where there is none. Raises UsageError for a folder, else StoreError."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder: name a file in it") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path) -> str | None:
    """The text of a file with its line ends as they are, or None. Raises UsageError if it is not UTF-8."""
    data = read_existing(path)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, or name another file"
        ) from error


def lines_of(text: str) -> list[str]:
    """The lines of ``text`` with their ends; only CR and LF end one, as in the programs that read it."""
    return re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text)


def change(path: Path, text: str, says: str = "") -> FileChange:
    """A change of ``path`` from its present content to ``text``."""
    return FileChange(path, read_existing(path), text.encode("utf-8"), says)


def not_settable(configuration: Configuration, target: str, settable: Container[str]) -> tuple[str, ...]:
    """One note for each parameter that a target cannot set, unless it gets that value without being told."""
    values = configuration.to_dict()
    # Programs with one number of threads, or one size of batches, use it for both.
    untold = DEFAULTS | {"n_ubatch": configuration.n_batch, "n_threads_batch": configuration.n_threads}
    return tuple(
        f"{target} has no setting for {t.name}, so the sweep's {t.to_word(values[t.name])} is not applied"
        for t in SERVER_TUNABLES
        if t.name not in settable and values[t.name] != untold[t.name]
    )
