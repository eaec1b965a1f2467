"""A stand-in for a llama-cpp-python that offloads to GPUs: only what sweeper's worker asks of one.

It computes nothing. What it keeps is memory: weights by the share of layers on the cards, a context's cache by
its length; and it runs short the two ways in which CUDA builds do (ggml-cuda.cu), with their words: an
allocation that fails and is answered with no model or context, and a pool that aborts the process while it
decodes. Set STAND_IN_GPUS and STAND_IN_GPU_MIB.
"""

import os
import sys
import time
from types import SimpleNamespace

__version__ = "stand-in"
MIB = 2**20
GPUS = int(os.environ["STAND_IN_GPUS"])
GPU_MIB = float(os.environ["STAND_IN_GPU_MIB"])
LAYERS = 2
CACHE_MIB_PER_TOKEN = 0.01
COMPUTE_MIB_PER_UBATCH_TOKEN = 0.1

logger = []
held = {"weights": 0.0, "cache": 0.0, "compute": 0.0}  # MiB on the cards together


def used_mib():
    return sum(held.values())


def _take(what, mib):
    if used_mib() - held[what] + mib > GPUS * GPU_MIB:
        print(f"allocating {mib:.2f} MiB on device 0: cudaMalloc failed: out of memory", file=sys.stderr)
        return False
    held[what] = mib
    return True


def llama_log_callback(function):
    return function


def llama_log_set(callback, _):
    logger.append(callback)


def _log(text):
    for callback in logger[-1:]:
        callback(2, text.encode() + b"\n", None)


def llama_backend_init():
    pass


def llama_print_system_info():
    return b"CUDA : ARCHS = 900 |"


def llama_supports_gpu_offload():
    return True


def llama_model_default_params():
    return SimpleNamespace(n_gpu_layers=0)


def llama_context_default_params():
    return SimpleNamespace()


def llama_model_load_from_file(path, params):
    wanted = params.n_gpu_layers
    share = 1.0 if wanted < 0 else min(1.0, wanted / (LAYERS + 1))
    on_cards = round(share * (LAYERS + 1))
    for layer in range(LAYERS + 1):  # the last ones go to the card, and the output with them
        device = "CUDA0" if layer > LAYERS - on_cards else "CPU"
        _log(f"load_tensors: layer {layer:3d} assigned to device {device}, is_swa = 0")
    if getattr(params, "no_alloc", False):
        return SimpleNamespace(share=share)
    return SimpleNamespace(share=share) if _take("weights", share * os.path.getsize(path) / MIB) else None


def llama_model_get_vocab(model):
    return model


def llama_vocab_n_tokens(vocab):
    return 512


def llama_model_meta_val_str(model, key, buffer, size):
    return -1  # the file recommends no samplers


def _sampler(*_):
    return SimpleNamespace()


llama_sampler_chain_default_params = llama_sampler_chain_init = _sampler
llama_sampler_init_penalties = llama_sampler_init_top_k = llama_sampler_init_top_p = _sampler
llama_sampler_init_min_p = llama_sampler_init_temp_ext = llama_sampler_init_dist = _sampler


def llama_sampler_chain_add(chain, sampler):
    pass


def llama_sampler_sample(chain, context, index):
    return 0


def llama_sampler_free(chain):
    pass


def llama_model_n_ctx_train(model):
    return 2048


def llama_model_free(model):
    held["weights"] = 0.0


def llama_init_from_model(model, params):
    on_card = model.share if params.offload_kqv else 0.0
    if not _take("cache", CACHE_MIB_PER_TOKEN * params.n_ctx * on_card):
        return None
    return SimpleNamespace(share=model.share, **vars(params))


def llama_free(context):
    held["cache"] = held["compute"] = 0.0


def llama_get_memory(context):
    return context


def llama_synchronize(context):
    pass


def llama_n_ctx(context):
    return -(-context.n_ctx // 256) * 256


def llama_n_batch(context):
    return context.n_batch


def llama_n_ubatch(context):
    return context.n_ubatch


def llama_n_threads(context):
    return context.n_threads


def llama_n_threads_batch(context):
    return context.n_threads_batch


def llama_batch_get_one(tokens, count):
    return count


def llama_decode(context, count):
    """Takes a pool for the batch as it comes, as CUDA's does."""
    needed = COMPUTE_MIB_PER_UBATCH_TOKEN * min(count, context.n_ubatch) * context.share
    if needed > held["compute"] and not _take("compute", needed):
        print(
            "CUDA error: out of memory\n  current device: 0, in function alloc", file=sys.stderr, flush=True
        )
        os.abort()
    time.sleep(0.0005)
    return 0


def llama_memory_clear(memory, data):
    pass


def llama_memory_seq_rm(memory, sequence, first, last):
    return True
