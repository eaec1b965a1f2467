"""The ways to split a model's layers among several GPUs that are worth a trial, and their names.

A split is the text that llama-server takes after ``--tensor-split``, for example ``3,1``. Records keep this text, and
`split_in_words` gives its name in a report. llama.cpp splits by the number of layers and not by their bytes. If the
experts of the first layers stay on the host, the first GPU therefore stays almost empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweeper.parameters import proportions

# The share of a GPU's memory that weights can take; the rest is for the KV cache, compute buffers and the driver.
USABLE_SHARE = 0.85
# Up to this number of GPUs, each of them alone is worth a trial.
MOST_ALONE = 2


def splits_to_try(
    memory_mib: Sequence[float], n_layer: int, model_mib: float, experts_mib: float = 0.0
) -> list[str | None]:
    """Up to five splits: llama.cpp's own (None), even, by bytes if experts must stay on the host, each GPU alone.

    Args:
        memory_mib: the memory of each GPU, in llama.cpp's order.
        n_layer: layers of the model, without the output.
        model_mib: the size of the weights.
        experts_mib: the size of the experts among them.
    """
    count = len(memory_mib)
    found: list[str | None] = [None, ",".join(["1"] * count)]
    if by_bytes := split_by_bytes(memory_mib, n_layer, model_mib, experts_mib):
        found.append(by_bytes)
    if count <= MOST_ALONE:
        # Of GPUs with the same memory, the first stands for all.
        unlike = {round(memory): index for index, memory in reversed(list(enumerate(memory_mib)))}
        found += [
            ",".join("1" if i == index else "0" for i in range(count)) for index in sorted(unlike.values())
        ]
    return list(dict.fromkeys(found))


def split_by_bytes(
    memory_mib: Sequence[float], n_layer: int, model_mib: float, experts_mib: float
) -> str | None:
    """The numbers of layers that fill every GPU equally, if the experts that do not fit stay on the host.

    None if all experts fit, because llama.cpp's own split then does the same.
    """
    left = host_expert_layers(sum(memory_mib), n_layer, model_mib, experts_mib)
    if left == 0 or n_layer == 0:
        return None
    expert, other = experts_mib / n_layer, (model_mib - experts_mib) / (n_layer + 1)
    sizes = [other + (expert if left <= layer < n_layer else 0.0) for layer in range(n_layer + 1)]
    total, filled, layers = sum(sizes), 0.0, [0] * len(memory_mib)
    gpu = 0
    bounds = [sum(memory_mib[: i + 1]) / sum(memory_mib) * total for i in range(len(memory_mib))]
    for size in sizes:
        while gpu + 1 < len(bounds) and filled + size / 2 > bounds[gpu]:
            gpu += 1
        layers[gpu] += 1
        filled += size
    return ",".join(map(str, layers))


def default_expert_layers(
    memory_mib: Sequence[float], n_layer: int, model_mib: float, experts_mib: float
) -> int:
    """The fewest layers whose experts must stay on the host if the GPUs share the layers by their memory.

    That is llama.cpp's own split, and about what llama-server's ``--fit`` chooses. All layers if nothing fits.
    """
    if experts_mib <= 0 or n_layer == 0 or not memory_mib:
        return 0
    expert, other = experts_mib / n_layer, (model_mib - experts_mib) / (n_layer + 1)
    bounds = [sum(memory_mib[: i + 1]) / sum(memory_mib) * (n_layer + 1) for i in range(len(memory_mib))]
    for left in range(n_layer):
        filled = [0.0] * len(memory_mib)
        for layer in range(n_layer + 1):
            gpu = next((i for i, bound in enumerate(bounds) if layer < bound), len(bounds) - 1)
            filled[gpu] += other + (expert if left <= layer < n_layer else 0.0)
        if all(size <= USABLE_SHARE * memory for size, memory in zip(filled, memory_mib, strict=True)):
            return left
    return n_layer


def host_expert_layers(memory_mib: float, n_layer: int, model_mib: float, experts_mib: float) -> int:
    """The fewest layers whose experts must stay on the host so that the other weights fit into ``memory_mib``."""
    if experts_mib <= 0 or n_layer == 0:
        return 0
    missing = model_mib - USABLE_SHARE * memory_mib
    return min(n_layer, max(0, math.ceil(missing / (experts_mib / n_layer))))


def split_in_words(split: str | None) -> str:
    """The name of a split for a report, for example ``even`` or ``36 % / 64 %``."""
    if split is None:
        return "by free memory"
    shares = proportions(split)
    used = [index for index, share in enumerate(shares) if share > 0]
    if len(used) == 1:
        return f"GPU {used[0]} alone"
    if len(set(shares)) == 1:
        return "even"
    return " / ".join(f"{100 * share / sum(shares):.0f} %" for share in shares)
