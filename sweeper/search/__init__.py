"""The search: an Optuna study, samplers, warm start, stopping."""
