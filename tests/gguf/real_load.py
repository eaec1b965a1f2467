"""Loads models for real and prints JSON: run as a program, since llama.cpp may end its process.

python real_load.py generate MODEL…          tokens that each generates, its vocabulary's size
python real_load.py buffers MODEL JSON…      buffers in MiB that a real context of each kind takes
"""

import json
import re
import sys

import llama_cpp

from sweeper.model.ggml_types import CACHE_TYPES
from sweeper.model.llama_library import LogCapture


def generate(paths):
    result = {}
    for path in paths:
        model = llama_cpp.Llama(path, n_ctx=256, n_threads=2, verbose=False, seed=1)
        answer = model("Alice was", max_tokens=8, temperature=1.0)
        chat = model.create_chat_completion([{"role": "user", "content": "hi"}], max_tokens=4)
        result[path] = {
            "text": answer["choices"][0]["text"],
            "chat": chat["choices"][0]["message"]["content"],
            "tokens": answer["usage"]["completion_tokens"],
            "vocabulary": model.n_vocab(),
            "round_trip": model.detokenize(model.tokenize(b"Alice & Zo\xc3\xab", add_bos=False)).decode(),
        }
    return result


def buffers(path, configurations):
    log = LogCapture()
    log.redirect(llama_cpp)
    params = llama_cpp.llama_model_default_params()
    params.load_mode = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    weights = total(log, "model")
    result = []
    for text in configurations:
        wanted = json.loads(text)
        context_params = llama_cpp.llama_context_default_params()
        for name in ("n_ctx", "n_batch", "n_ubatch"):
            setattr(context_params, name, wanted[name])
        context_params.flash_attn_type = int(wanted["flash_attn"])
        context_params.type_k = CACHE_TYPES[wanted["type_k"]].number
        context_params.type_v = CACHE_TYPES[wanted["type_v"]].number
        log.clear()
        context = llama_cpp.llama_init_from_model(model, context_params)
        result.append(
            {
                "weights": weights,
                "kv": total(log, "KV"),
                "compute": total(log, "compute") + total(log, "output"),
            }
        )
        llama_cpp.llama_free(context)
    return result


def total(log, kind):
    sizes = re.findall(rf"{kind} buffer size =\s*([\d.]+) MiB", "\n".join(log.lines()))
    return sum(float(size) for size in sizes)


if __name__ == "__main__":
    what, first, *others = sys.argv[1:]
    print(json.dumps(generate([first, *others]) if what == "generate" else buffers(first, others)))
