"""The parent side of the llama.cpp engine. It decides when to load the model again, and names each failure."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from sweeper.engine.base import KEPT_FROM_SECONDS, SAMPLING, LoadReport, Run
from sweeper.errors import EngineMissingError, EngineRefused, TrialFailed
from sweeper.model.available_memory import given_back_mib
from sweeper.parameters import CONTEXT_KEYS, MODEL_KEYS, padded
from sweeper.processes import WorkerProcess
from sweeper.records import Caveat, Configuration, EngineRecord, Fill

# To start, a worker only imports the library and names its build (0.3 s on a quiet machine), so this long is a hang.
START_TIMEOUT_SECONDS = 60.0
# How far a window may exceed its own time limit: one prompt batch on a slow machine cannot be interrupted.
WINDOW_GRACE_SECONDS = 600.0
LOAD_TIMEOUT_SECONDS = 1800.0


HOW_TO_INSTALL = (
    "install it with `pip install llama-cpp-python`, which needs a compiler, or tune a llama-server that you have: "
    "engine=llama_server"
)


def demand_library() -> None:
    """Raise EngineMissingError if llama-cpp-python is not installed. It is not loaded here."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise EngineMissingError("llama-cpp-python is not installed", HOW_TO_INSTALL)


class LlamaCppEngine:
    """llama.cpp through llama-cpp-python, in a worker process. Implements the `Engine` Protocol.

    Args:
        model_files: the path of the GGUF file for each value of ``Configuration.quant``.
        environment: variables that are set for the worker only, for example ``OMP_WAIT_POLICY``.
        window_grace_seconds: a window that exceeds its limit by more than this is a hang.
        load_timeout_seconds: a load that takes longer than this is a hang.
        keep_in: a folder on a disk for contexts that took long to fill. Their files have no name and disappear with
            this process. None: the engine fills each new context.
        keep_from_seconds: the engine keeps a context only if it took at least this long to fill.
        sample: sample each generated token, as servers do. llama-bench does not.
    """

    def __init__(
        self,
        model_files: Mapping[str | None, Path],
        environment: Mapping[str, str] | None = None,
        window_grace_seconds: float = WINDOW_GRACE_SECONDS,
        load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS,
        keep_in: Path | None = None,
        keep_from_seconds: float = KEPT_FROM_SECONDS,
        sample: bool = True,
    ) -> None:
        self._files: dict[str | None, Path] = dict(model_files)
        self._window_grace_seconds = window_grace_seconds
        self._load_timeout_seconds = load_timeout_seconds
        self._worker = WorkerProcess("sweeper.engine.worker", environment)
        self._keep_in, self._keep_from_seconds = keep_in, keep_from_seconds
        self._sample = sample
        self._kept: dict[tuple[object, ...], IO[bytes]] = {}
        self._kept_depths: dict[tuple[object, ...], int] = {}
        self._loaded: Configuration | None = None
        self._held_vram_mib = 0.0
        self._hello: dict[str, Any] | None = None

    @property
    def record(self) -> EngineRecord:
        """Version and build, as the worker reports them. Raises EngineMissingError if the worker cannot start."""
        if self._hello is None:
            try:
                self._hello = self._ask("hello", START_TIMEOUT_SECONDS)
            except TrialFailed as failure:
                why = failure.log_tail[-1] if failure.log_tail else str(failure)
                raise EngineMissingError(
                    f"llama-cpp-python cannot be loaded ({why})",
                    HOW_TO_INSTALL,
                ) from failure
        return EngineRecord(
            name="llama_cpp",
            version=f"llama-cpp-python {self._hello['version']}",
            build=self._hello["build"],
            gpu_offload=self._hello["gpu_offload"],
            sampling=SAMPLING if self._sample else "",
        )

    def measure_as(self, record: EngineRecord) -> None:
        """Measure decode as the engine of ``record`` did, with or without sampling."""
        self._sample = bool(record.sampling)

    def use_files(self, model_files: Mapping[str, Path]) -> None:
        """Add files of the model, by quantisation."""
        self._files.update(model_files)

    def path_of(self, configuration: Configuration) -> Path:
        """The model file of this configuration."""
        return self._files[configuration.quant]

    def held_mib(self) -> tuple[float, float]:
        """The memory that the present worker would free by ending, on the host and on the devices, in MiB."""
        pid = self.worker_pid
        return (0.0, 0.0) if pid is None else (given_back_mib(pid), self._held_vram_mib)

    def unload(self) -> None:
        """End the worker, which frees the model; the next `load` starts another one."""
        self._forget()

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker; None if there is no worker."""
        return self._worker.pid

    def load(self, configuration: Configuration) -> LoadReport:
        """Load ``configuration``; see the Protocol."""
        wanted = configuration.to_dict()
        had = self._loaded if self._worker.pid is not None else None
        reload = had is None or any(getattr(had, k) != wanted[k] for k in MODEL_KEYS)
        self._loaded = None  # if anything below fails, it is unknown what is loaded
        if reload and had is not None:
            self._worker.kill()  # in a new process, the memory peaks are those of this model
        reply = self._ask(
            "load",
            self._load_timeout_seconds,
            model_path=str(self.path_of(configuration)) if reload else None,
            model={k: wanted[k] for k in MODEL_KEYS if k != "quant"},
            context={k: wanted[k] for k in CONTEXT_KEYS},
            kept=self._kept_for(configuration),
            keep_from_seconds=self._keep_from_seconds,
        )
        self._loaded = configuration
        memory_mib, vram_mib = self.memory()
        self._held_vram_mib = vram_mib or 0.0
        in_force = {k: wanted[k] for k in MODEL_KEYS} | reply["in_force"]
        caveats = _caveats(configuration, in_force, int(reply["n_ctx_train"]))
        return LoadReport(in_force, float(reply["seconds"]), reload, memory_mib, vram_mib, caveats)

    def fill(self, depth: int, tell: Callable[[int], None]) -> Fill | None:
        """See `FillsContexts`. A hang is a time without any progress, however long the whole takes."""
        loaded = self._demand_loaded()
        reply = self._ask("fill", self._window_grace_seconds, tell, depth=depth)
        if reply["seconds"] is None:
            return None
        if reply["seconds"] >= self._keep_from_seconds and self._kept_for(loaded) is not None:
            self._kept_depths[_layout(loaded)] = depth
        return Fill(depth, reply["seconds"])

    def restores(self, configuration: Configuration, depth: int) -> bool:
        """See `FillsContexts`. Each layout keeps one context; on a full disk, the worker fills it all the same."""
        return self._kept_depths.get(_layout(configuration)) == depth

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol."""
        return self._window("prefill", tokens, depth, min_seconds, max_seconds)

    def decode(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> Run:
        """See the Protocol."""
        return self._window("decode", tokens, depth, min_seconds, max_seconds, sample=self._sample)

    def memory(self) -> tuple[float | None, float | None]:
        """See the Protocol."""
        reply = self._ask("memory", START_TIMEOUT_SECONDS)
        return reply["memory_mib"], reply["vram_mib"]

    def close(self) -> None:
        """End the worker. May be called twice."""
        self._forget()
        while self._kept:
            self._kept.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _window(
        self, what: str, tokens: int, depth: int, min_seconds: float, max_seconds: float, **more: Any
    ) -> Run:
        self._demand_loaded()
        reply = self._ask(
            what,
            max_seconds + self._window_grace_seconds,
            tokens=tokens,
            depth=depth,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            **more,
        )
        rounds = tuple(reply["round_seconds"])
        return Run(reply["tokens"], reply["seconds"], reply["started"], reply["ended"], len(rounds), rounds)

    def _demand_loaded(self) -> Configuration:
        if self._loaded is None:
            raise EngineRefused("nothing is loaded")
        return self._loaded

    def _kept_for(self, configuration: Configuration) -> str | None:
        """Path of the file for contexts of this configuration's model and cache layout; None if there is none.

        The file has no name and is open in this process. It outlives workers, and disappears however this process ends.
        """
        if self._keep_in is None or not os.path.isdir("/proc/self/fd"):
            return None
        layout = _layout(configuration)
        if layout not in self._kept:
            try:
                self._kept[layout] = tempfile.TemporaryFile(dir=self._keep_in)  # noqa: SIM115 - closed by close
            except OSError:
                return None  # keeping contexts only saves time
        return f"/proc/{os.getpid()}/fd/{self._kept[layout].fileno()}"

    def _ask(
        self, what: str, timeout_seconds: float, tell: Callable[[int], None] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        try:
            return self._worker.ask(what, timeout_seconds, tell, **arguments)
        except TrialFailed:
            self._forget()  # it is unknown what a refused worker still holds, so the next load starts afresh
            raise

    def _forget(self) -> None:
        self._worker.kill()  # the worker holds no data that must be saved
        self._loaded = None


def _layout(configuration: Configuration) -> tuple[object, ...]:
    """What decides whether a context of one configuration can be restored into another one's."""
    return tuple(getattr(configuration, key) for key in ("quant", "type_k", "type_v", "flash_attn"))


def _caveats(asked: Configuration, in_force: Mapping[str, Any], n_ctx_train: int) -> tuple[Caveat, ...]:
    found = []
    if n_ctx_train and in_force["n_ctx"] > padded(n_ctx_train):
        found.append(Caveat.BEYOND_TRAINING)
    if asked.use_mlock and not in_force["use_mlock"]:
        found.append(Caveat.NOT_LOCKED)
    return tuple(found)
