"""The smallest shapes that all of llama.cpp's quantisations take."""

from sweeper.model.shapes import ModelShape

# Two layers of the least width that all of llama.cpp's quantisations take: F16 in 3 MiB.
NANO = ModelShape(
    n_layer=2,
    embedding_length=256,
    feed_forward_length=512,
    head_count=4,
    head_count_kv=2,
    vocab_size=1024,
    n_ctx_train=1024,
)
NANO_MOE = ModelShape(
    n_layer=2,
    embedding_length=256,
    feed_forward_length=256,
    head_count=4,
    head_count_kv=2,
    vocab_size=1024,
    n_ctx_train=1024,
    expert_count=8,
    expert_used_count=2,
)
