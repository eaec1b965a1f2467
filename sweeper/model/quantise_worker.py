"""Runs llama.cpp's own quantiser in a process of its own: `python -m sweeper.model.quantise_worker`.

Requests: ``size`` (the size of a level, without writing it) and ``quantise``.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from sweeper.model.llama_log import LogCapture, capture_log
from sweeper.serving import Refused, serve

_QUANT_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_FAILED = re.compile(r"failed to quantize: (.*)")


class QuantiseWorker:
    """Holds the library and its log."""

    def __init__(self) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._log: LogCapture = capture_log()
        llama_cpp.llama_backend_init()

    def size(self, source: str, target: str, ftype: int, threads: int) -> dict[str, Any]:
        """The size of the weights in MiB, and whether llama.cpp needs an importance matrix."""
        self._run(source, target, ftype, threads, dry_run=True)
        for line in reversed(self._log.lines):
            match = _QUANT_SIZE.search(line.text)
            if match:
                needs = any("require an imatrix" in warning for warning in self._log.of_level("warn"))
                return {"mib": float(match[1]), "needs_importance": needs}
        raise Refused("llama.cpp did not say how large the result would be")

    def quantise(self, source: str, target: str, ftype: int, threads: int) -> dict[str, Any]:
        """Write ``target``. The answer contains the warnings of the log."""
        self._run(source, target, ftype, threads, dry_run=False)
        return {"warnings": [" ".join(line.split()) for line in self._log.of_level("warn")]}

    def _run(self, source: str, target: str, ftype: int, threads: int, dry_run: bool) -> None:
        params = self._api.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.dry_run = ftype, threads, dry_run
        params.allow_requantize = False
        self._log.clear()
        status = self._api.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(params)
        )
        if status != 0:
            raise Refused(self._reason() or f"llama.cpp's quantiser answered {status} without a reason")

    def _reason(self) -> str:
        for line in reversed(self._log.of_level("error")):
            match = _FAILED.search(line)
            if match:
                return match[1]
        errors = self._log.of_level("error")
        return errors[-1] if errors else ""


def main() -> None:
    """Serve requests until standard input ends."""
    worker = QuantiseWorker()
    serve({"size": worker.size, "quantise": worker.quantise})


if __name__ == "__main__":
    main()
