"""Samples tokens as llama-server does for a client that asks for nothing, in the worker process.

Building the list of candidates costs time in proportion to the vocabulary: 6 % of a small model's decode speed with
262,144 tokens. A server pays this for each token, so a decode speed without it is more than any client gets.

The samplers and their defaults are those of ``common_params_sampling`` in llama.cpp's ``common/common.h``. Its samplers
for DRY, top-n-sigma, typical-p and XTC are switched off by default, and llama.cpp makes empty ones of them, so they
are left out here. A model may recommend other values in its metadata, which llama-server then takes.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

# Under llama.cpp's names, which are also the ends of the keys ``general.sampling.…`` in a model's metadata.
DEFAULTS = {
    "penalty_last_n": 64,
    "penalty_repeat": 1.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "temp": 0.8,
}
_LONGEST_VALUE = 128  # bytes, as in llama-server


class Sampler:
    """llama-server's default chain of samplers for one model.

    Args:
        api: the module ``llama_cpp``.
        model: a loaded model, which must outlive this object.
        seed: of the last sampler, which draws the token.
    """

    def __init__(self, api: Any, model: Any, seed: int) -> None:
        self._api = api
        self.values = values_of(api, model)
        n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        v = self.values
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for sampler in (
            api.llama_sampler_init_penalties(
                n_vocab, int(v["penalty_last_n"]), v["penalty_repeat"], 0.0, 0.0
            ),
            api.llama_sampler_init_top_k(int(v["top_k"])),
            api.llama_sampler_init_top_p(v["top_p"], 0),
            api.llama_sampler_init_min_p(v["min_p"], 0),
            api.llama_sampler_init_temp_ext(v["temp"], 0.0, 1.0),
            api.llama_sampler_init_dist(seed),
        ):
            api.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it from here

    def sample(self, context: Any) -> int:
        """The token that follows the last one decoded in ``context``, which must be synchronised."""
        token: int = self._api.llama_sampler_sample(self._chain, context, -1)
        return token

    def free(self) -> None:
        """Free llama.cpp's memory. Call it once."""
        self._api.llama_sampler_free(self._chain)


def values_of(api: Any, model: Any) -> dict[str, float]:
    """The defaults with the values that the model recommends, as far as they are numbers."""
    found = dict(DEFAULTS)
    for name in DEFAULTS:
        buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
        if api.llama_model_meta_val_str(model, f"general.sampling.{name}".encode(), buffer, len(buffer)) > 0:
            found[name] = _number(buffer.value, found[name])
    if found["penalty_repeat"] <= 0:  # llama-server refuses it, and llama.cpp would abort
        found["penalty_repeat"] = DEFAULTS["penalty_repeat"]
    return found


def _number(text: bytes, otherwise: float) -> float:
    try:
        number = float(text)
    except ValueError:
        return otherwise  # as llama-server does
    return number if math.isfinite(number) else otherwise
