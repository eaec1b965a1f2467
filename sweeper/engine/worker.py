"""The child side of the llama.cpp engine: one process that loads models and times inference.

It answers the requests ``hello``, ``load``, ``fill``, ``prefill``, ``decode`` and ``memory`` (see `sweeper.serving`).

The loops are those of llama-bench: random tokens, no tokenising inside a window, the device synchronised before each
clock reading, and the context cleared back to its depth between rounds. Decode also samples each token, as a server
does, unless the request says not to.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sweeper.engine.sampling import Sampler
from sweeper.model.llama_library import LogCapture, gpus
from sweeper.model.llama_params import context_params, model_params
from sweeper.serving import Refused, serve
from sweeper.system import peak_memory_mib

_OFFLOADED = re.compile(r"offloaded (\d+)/\d+ layers to GPU")
_NOT_LOCKED = re.compile(r"failed to (mlock|VirtualLock)")
MOST_OF_FREE_DISK = 0.1  # a kept context takes no more than this share
# While a context is filled, the parent hears about this often how far it is. Each time waits for the device.
TOLD_EVERY_SECONDS = 1.0
_SEED = 42  # the same tokens for every configuration, so that each activates the same experts


class Worker:
    """Holds the loaded model and context between requests."""

    def __init__(self) -> None:
        import llama_cpp

        self.api = llama_cpp
        # What of the model is in force. llama.cpp has no functions for these, so they are read from its log.
        self.model_in_force: dict[str, Any] = {}
        self.log = LogCapture(also=sys.stderr)  # the parent keeps what stands on standard error
        self.log.redirect(llama_cpp)
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self.sampler: Sampler | None = None
        self.context: Any = None
        self.memory_handle: Any = None
        self.depth = 0
        self.kept: str | None = None
        self.keep_from_seconds = 0.0
        self.context_params: dict[str, Any] = {}
        self.tokens = random.Random(_SEED)
        self.vram_at_start = _vram_used_mib()
        self.vram_peak: float | None = None

    # -- requests ---------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Version, build line, and whether layers can be offloaded."""
        return {
            "version": self.api.__version__,
            "build": self.api.llama_print_system_info().decode("utf-8", "replace").strip(),
            "gpu_offload": bool(self.api.llama_supports_gpu_offload()) and bool(gpus()),
        }

    def load(
        self,
        model_path: str | None,
        model: Mapping[str, Any],
        context: Mapping[str, Any],
        kept: str | None = None,
        keep_from_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Load a model (None: keep the loaded one) and make a context on it.

        ``kept`` is a file for contexts of this model and cache layout. The worker keeps a context there that took
        ``keep_from_seconds`` or longer to fill, and restores the next new context from it.
        """
        began = time.perf_counter()
        self.kept, self.keep_from_seconds = kept, keep_from_seconds
        if model_path is not None:
            self._free_context()
            self._free_model()
            self.log.clear()
            params = model_params(self.api, model)
            self.model = self.api.llama_model_load_from_file(os.fsencode(model_path), params)
            if not self.model:
                raise Refused(self.log.reason("llama.cpp could not load the model"))
            self.model_in_force = _in_force(self.log.lines(), model)
            self.n_vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        threads = {name: context[name] for name in ("n_threads", "n_threads_batch")}
        if self.context and self.context_params | threads == context:
            self.api.llama_set_n_threads(self.context, *threads.values())
        else:
            self._free_context()
            self.log.clear()
            self.context = self.api.llama_init_from_model(self.model, context_params(self.api, context))
            if not self.context:
                raise Refused(self.log.reason("llama.cpp could not make a context"))
            self.memory_handle = self.api.llama_get_memory(self.context)
            self.depth = 0
        self.context_params = dict(context)
        self.api.llama_synchronize(self.context)
        self._note_vram()
        read_back = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch")
        in_force = {name: getattr(self.api, f"llama_{name}")(self.context) for name in read_back}
        return {
            "seconds": time.perf_counter() - began,
            "in_force": self.context_params | in_force | self.model_in_force,
            "n_ctx_train": self.api.llama_model_n_ctx_train(self.model),
        }

    def fill(self, depth: int, tell: Callable[[int], None]) -> dict[str, Any]:
        """Fill the context to ``depth`` tokens, and ``tell`` how many are done.

        ``seconds`` of the answer is None if the context was not empty before, or was restored.
        """
        was_empty = self.depth == 0
        seconds = self._go_to_depth(depth, tell)
        return {"seconds": seconds if was_empty else None}

    def prefill(self, tokens: int, depth: int, min_seconds: float, max_seconds: float) -> dict[str, Any]:
        """Run rounds of ``tokens`` prompt tokens on top of ``depth``."""
        self._go_to_depth(depth)

        def one_round() -> int:
            self._process(self._random(tokens))
            return tokens

        return self._rounds(one_round, depth, min_seconds)

    def decode(
        self, tokens: int, depth: int, min_seconds: float, max_seconds: float, sample: bool = True
    ) -> dict[str, Any]:
        """Run rounds that generate ``tokens`` one by one on top of ``depth``.

        With ``sample``, each token is sampled as a server does. The next token is a random one all the same: sampled
        tokens would differ between configurations, and with them the experts that are active.
        """
        self._go_to_depth(depth)
        deadline = time.monotonic() + max_seconds
        decode, sync, context = self.api.llama_decode, self.api.llama_synchronize, self.context
        if sample and self.sampler is None:
            self.sampler = Sampler(self.api, self.model, _SEED)
        sampled = self.sampler.sample if sample and self.sampler is not None else None

        def one_round() -> int:
            chosen = (ctypes.c_int32 * tokens)(*self._random(tokens))
            size = ctypes.sizeof(ctypes.c_int32)
            pointer = ctypes.POINTER(ctypes.c_int32)
            for i in range(tokens):
                one = ctypes.cast(ctypes.addressof(chosen) + i * size, pointer)
                status = decode(context, self.api.llama_batch_get_one(one, 1))
                if status != 0:
                    raise Refused(f"llama_decode answered {status} while generating")
                sync(context)
                if sampled is not None:
                    sampled(context)
                if time.monotonic() >= deadline:
                    return i + 1
            return tokens

        return self._rounds(one_round, depth, min_seconds)

    def memory(self) -> dict[str, Any]:
        """The peaks of this process's resident memory and of the devices' memory, in MiB."""
        self._note_vram()
        return {"memory_mib": peak_memory_mib(), "vram_mib": self.vram_peak}

    # -- inside -----------------------------------------------------------------------------------------

    def _random(self, count: int) -> list[int]:
        return [self.tokens.randrange(self.n_vocab) for _ in range(count)]

    def _process(self, tokens: list[int], tell: Callable[[int], None] | None = None, before: int = 0) -> None:
        """Process a prompt. With ``tell``, in parts as large as llama.cpp computes at once, on top of ``before``."""
        api = self.api
        size, told = (api.llama_n_ubatch if tell else api.llama_n_batch)(self.context), time.monotonic()
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            array = (ctypes.c_int32 * len(part))(*part)
            status = api.llama_decode(self.context, api.llama_batch_get_one(array, len(part)))
            if status != 0:
                raise Refused(f"llama_decode answered {status} on a prompt of {len(tokens)} tokens")
            if tell is not None and time.monotonic() - told >= TOLD_EVERY_SECONDS:
                api.llama_synchronize(self.context)
                tell(before + start + len(part))
                told = time.monotonic()
        api.llama_synchronize(self.context)

    def _go_to_depth(self, depth: int, tell: Callable[[int], None] | None = None) -> float | None:
        """Fill the context to ``depth`` tokens, on top of its present tokens, or restore a kept context.

        On a slow machine, filling takes longer than the rest of a trial, and speed does not depend on the tokens'
        values.

        Returns:
            The seconds of filling; None if nothing was filled.
        """
        seconds = None
        if depth <= self.depth:
            self._back_to(depth)
        elif self.depth or not self._restored(depth):
            self._back_to(self.depth)
            tokens = self._random(depth - self.depth)
            began = time.perf_counter()
            self._process(tokens, tell, self.depth)
            seconds = time.perf_counter() - began
            if seconds >= self.keep_from_seconds:
                self._keep(depth)
        self.depth = depth
        return seconds

    def _back_to(self, depth: int) -> None:
        if depth == 0:
            self.api.llama_memory_clear(self.memory_handle, False)
        elif not self.api.llama_memory_seq_rm(self.memory_handle, 0, depth, -1) and not self._restored(depth):
            # Recurrent models cannot remove part of the context, so fill it again.
            self.api.llama_memory_clear(self.memory_handle, False)
            self._process(self._random(depth))
            self._keep(depth)

    def _keep(self, depth: int) -> None:
        """Keep the context's first sequence, unless that takes too much of the disk. Failures do not matter."""
        if self.kept is None:
            return
        with contextlib.suppress(OSError):
            disk = os.statvfs(self.kept)
            size = self.api.llama_state_seq_get_size(self.context, 0)
            if size > MOST_OF_FREE_DISK * disk.f_bavail * disk.f_frsize:
                return
            tokens = (ctypes.c_int32 * depth)()
            if not self.api.llama_state_seq_save_file(self.context, os.fsencode(self.kept), 0, tokens, depth):
                os.truncate(self.kept, 0)

    def _restored(self, depth: int) -> bool:
        """Restore ``depth`` tokens from the file and return True; otherwise leave the context empty."""
        try:
            if self.kept is None or os.stat(self.kept).st_size == 0:
                return False
        except OSError:
            return False
        self.api.llama_memory_clear(self.memory_handle, False)
        tokens, count = (ctypes.c_int32 * depth)(), ctypes.c_size_t()
        path = os.fsencode(self.kept)
        read = self.api.llama_state_seq_load_file(self.context, path, 0, tokens, depth, ctypes.byref(count))
        if read and count.value == depth:
            self.api.llama_synchronize(self.context)
            return True
        self.api.llama_memory_clear(self.memory_handle, False)
        return False

    def _rounds(self, one_round: Callable[[], int], depth: int, min_seconds: float) -> dict[str, Any]:
        total, seconds = 0, []
        gc.disable()  # a garbage collection inside a window would count as inference time
        try:
            started = time.monotonic()
            while True:
                began = time.perf_counter()
                total += one_round()
                seconds.append(time.perf_counter() - began)
                ended = time.monotonic()
                if ended - started >= min_seconds:
                    break
                self._back_to(depth)
        finally:
            gc.enable()
        self._back_to(depth)
        return {
            "tokens": total,
            "seconds": sum(seconds),
            "started": started,
            "ended": ended,
            "round_seconds": seconds,
        }

    def _free_model(self) -> None:
        if self.sampler is not None:
            self.sampler.free()
            self.sampler = None
        if self.model:
            self.api.llama_model_free(self.model)
            self.model = None

    def _free_context(self) -> None:
        if self.context:
            self.api.llama_free(self.context)
            self.context, self.context_params = None, {}

    def _note_vram(self) -> None:
        if (now := _vram_used_mib()) is not None and self.vram_at_start is not None:
            self.vram_peak = max(self.vram_peak or 0.0, now - self.vram_at_start)


def _in_force(log: Iterable[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a model that llama.cpp's log of its load tells of."""
    text = "\n".join(log)
    offloaded = _OFFLOADED.search(text)
    return {
        "n_gpu_layers": int(offloaded[1]) if offloaded else 0,
        "use_mlock": asked["use_mlock"] and not _NOT_LOCKED.search(text),
    }


def _vram_used_mib() -> float | None:
    devices = gpus()
    return sum(gpu.total_mib - gpu.free_mib for gpu in devices) if devices else None


if __name__ == "__main__":
    worker = Worker()
    requests = (worker.hello, worker.load, worker.fill, worker.prefill, worker.decode, worker.memory)
    serve({request.__name__: request for request in requests})
