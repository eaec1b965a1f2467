"""A stand-in for llama-quantize, for folders of llama.cpp without it: the same function of the same library.

    python llama_quantize.py SOURCE TARGET TYPE [THREADS]

As in llama-quantize, a source that is quantised already needs ``--allow-requantize``.
"""

from __future__ import annotations

import ctypes
import os
import sys

from sweeper.model.ggml_types import FILE_TYPE_BY_NAME
from sweeper.model.llama_library import Library
from sweeper.model.quantise import LEVELS


def main(words: list[str]) -> int:
    allow = "--allow-requantize" in words
    words = [word for word in words if word != "--allow-requantize"]
    if len(words) < 3 or words[2].upper() not in LEVELS:
        print("usage: llama-quantize [--allow-requantize] model-f32.gguf model-quant.gguf type [nthreads]")
        for level in LEVELS:
            print(f"  {FILE_TYPE_BY_NAME[level]:>4}  or  {level:<8}: made from the weights alone")
        return 1
    library = Library()
    params = library.api.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FILE_TYPE_BY_NAME[words[2].upper()], allow
    params.nthread = int(words[3]) if len(words) > 3 else os.cpu_count() or 1
    source, target = (os.fsencode(word) for word in words[:2])
    status: int = library.api.llama_model_quantize(source, target, ctypes.byref(params))
    print("\n".join(library.log.lines("error")), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
