"""Overrides that make a real sweep last seconds."""

FAST = (
    "experiment=quick",
    "space.type_k=f16",
    "space.n_ubatch=[32,64]",
    "space.n_threads=1",  # two threads wait for each other on a busy machine, a hundred times as long
    "space.n_threads_batch=1",
    "space.quant=[F16,Q8_0]",
    "search.minutes=null",
    "model.quality_tokens=512",
    "search.wait_for_quiet=false",  # a test must not wait for the other work of a machine
    "search.finalists=1",
    "search.full_depth=false",
    "workload.prompt_tokens=64",
    "workload.generated_tokens=16",
    "workload.n_ctx=256",
    "workload.warmup_seconds=0.1",
    "workload.screening_seconds=0.2",
    "workload.screening_repeats=2",
    "workload.final_seconds=0.6",
    "workload.final_repeats=3",
)
