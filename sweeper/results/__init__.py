"""Results of a sweep's trials: Pareto front, picks, prices, ceiling."""
