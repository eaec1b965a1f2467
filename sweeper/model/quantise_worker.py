"""Runs llama.cpp's own quantiser in a process of its own: `python -m sweeper.model.quantise_worker`.

Requests: ``size`` (the size of a level, without writing it) and ``quantise``.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from sweeper.model.llama_library import Library
from sweeper.serving import Refused, serve

_QUANT_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_FAILED = re.compile(r"failed to quantize: (.*)")


class QuantiseWorker:
    """Holds the library and its log."""

    def __init__(self) -> None:
        self._llama = Library()

    def size(self, source: str, target: str, ftype: int, threads: int) -> dict[str, Any]:
        """The size of the weights in MiB, and whether llama.cpp needs an importance matrix."""
        self._run(source, target, ftype, threads, dry_run=True)
        sizes = _QUANT_SIZE.findall("\n".join(self._llama.log.lines()))
        if not sizes:
            raise Refused("llama.cpp did not say how large the result would be")
        needs = any("require an imatrix" in warning for warning in self._llama.log.lines("warn"))
        return {"mib": float(sizes[-1]), "needs_importance": needs}

    def quantise(self, source: str, target: str, ftype: int, threads: int) -> dict[str, Any]:
        """Write ``target``. The answer contains the warnings of the log."""
        self._run(source, target, ftype, threads, dry_run=False)
        return {"warnings": [" ".join(line.split()) for line in self._llama.log.lines("warn")]}

    def _run(self, source: str, target: str, ftype: int, threads: int, dry_run: bool) -> None:
        api, log = self._llama.api, self._llama.log
        params = api.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.dry_run = ftype, threads, dry_run
        params.allow_requantize = False
        log.clear()
        status = api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
        if status != 0:
            failures = _FAILED.findall("\n".join(log.lines("error")))
            raise Refused(
                failures[-1] if failures else log.reason(f"llama.cpp's quantiser answered {status}")
            )


if __name__ == "__main__":
    worker = QuantiseWorker()
    serve({"size": worker.size, "quantise": worker.quantise})
