"""The test files that take longest, longest first.

If one of them started last, it would keep one process busy alone.
"""

LONGEST = (
    "test_llama_server_sweep.py",
    "test_stopped_by_hand.py",
    "test_end_to_end.py",
    "test_sweep_killed.py",
    "test_gpu_benchmark.py",
    "test_gp_front.py",
    "test_endpoint.py",
    "test_bad_input.py",
    "test_ui.py",
    "test_speculation_sweep.py",
    "test_recorded_store.py",
    "test_killed.py",
    "test_guess_command.py",
    "test_gguf_quality.py",
    "test_apply_killed.py",
)
