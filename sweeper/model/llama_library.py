"""llama.cpp's library in a worker process: its log, its loaded model and its GPUs."""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, TextIO

from sweeper.serving import Refused

LEVELS = {1: "debug", 2: "info", 3: "warn", 4: "error"}  # enum ggml_log_level; `llama_cpp` has other numbers
_CONTINUE = 5  # the text continues the last line
_KEEP_LINES = 4000  # a load logs 200 to 700 lines, a quantisation two lines for each tensor
# llama.cpp ends each failed load with errors of this form; the error before them says why.
_WITHOUT_REASON = re.compile(r"failed to (load model( from .*)?|read (tensor (data|info)|key-value pairs))$")
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: discrete and integrated


class LogCapture:
    """The last lines of llama.cpp's log, oldest first. For many failures, only the log contains the reason.

    ``also`` is a stream that gets the log as well.
    """

    def __init__(self, keep: int = _KEEP_LINES, also: TextIO | None = None) -> None:
        self._also = also
        self._lines: deque[tuple[str, str]] = deque(maxlen=keep)
        self._level = "none"
        self._partial = ""
        self._callback: Any = None

    def redirect(self, api: Any) -> None:
        """Redirect llama.cpp's log in this process from stderr to this object, which must outlive llama.cpp."""

        def feed(level: int, raw: bytes, _: Any) -> None:
            text = raw.decode("utf-8", "replace")
            if self._also is not None:
                self._also.write(text)
                self._also.flush()
            self.feed(level, text)

        self._callback = api.llama_log_callback(feed)  # kept here because ctypes does not hold a reference
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def feed(self, level: int, text: str) -> None:
        """Add one piece of log, which may be part of a line or several lines."""
        if level != _CONTINUE:
            name = LEVELS.get(level, "none")
            if name != self._level:  # the quantiser continues its lines with the same level
                self._end_line()
            self._level = name
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._keep(line)

    def lines(self, level: str | None = None) -> list[str]:
        """The lines of one level (None: of all levels), oldest first."""
        self._end_line()
        return [text for its_level, text in self._lines if level in (None, its_level)]

    def reason(self, message: str) -> str:
        """The message with the log's last error that gives a reason, if there is one."""
        errors = self.lines("error")
        telling = [line for line in errors if not _WITHOUT_REASON.search(line)]
        return ": ".join([message, *(telling or errors)[-1:]])

    def clear(self) -> None:
        """Delete all kept lines."""
        self._partial = ""
        self._lines.clear()

    def _end_line(self) -> None:
        self._keep(self._partial)
        self._partial = ""

    def _keep(self, line: str) -> None:
        if line.strip():
            self._lines.append((self._level, line.rstrip()))


class Library:
    """llama.cpp with its log, and with the last loaded model."""

    def __init__(self) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.log = LogCapture()
        self.log.redirect(llama_cpp)
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self._loaded: object = None

    def load(self, path: str, params: Any, key: object) -> bool:
        """Load the model, and free the one before it. False if the model of that ``key`` is loaded already.

        A ``key`` of None is never that of the loaded model.
        """
        if key is not None and self._loaded == key:
            return False
        if self.model:
            self.api.llama_model_free(self.model)
            self._loaded = None
        self.log.clear()
        self.model = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise Refused(self.log.reason("llama.cpp could not load the model"))
        self._loaded = key
        return True

    def new_context(self, params: Any) -> Any:
        """A context on the loaded model, which the caller frees."""
        self.log.clear()
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            raise Refused(self.log.reason("llama.cpp could not make a context"))
        return context


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that can hold layers, under ggml's name, for example ``CUDA0``."""

    name: str
    free_mib: float
    total_mib: float


def gpus() -> list[Gpu]:
    """The discrete and integrated GPUs, through ggml's own interface."""
    from llama_cpp import _ggml

    ggml = _ggml.libggml
    size = ctypes.POINTER(ctypes.c_size_t)
    for name, result, arguments in (
        ("count", ctypes.c_size_t, []),
        ("get", ctypes.c_void_p, [ctypes.c_size_t]),
        ("type", ctypes.c_int, [ctypes.c_void_p]),
        ("name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("memory", None, [ctypes.c_void_p, size, size]),
    ):
        function = getattr(ggml, f"ggml_backend_dev_{name}")
        function.restype, function.argtypes = result, arguments
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        if ggml.ggml_backend_dev_type(device) in _GPU_TYPES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name = ggml.ggml_backend_dev_name(device).decode("utf-8", "replace")
            found.append(Gpu(name, free.value / 2**20, total.value / 2**20))
    return found
