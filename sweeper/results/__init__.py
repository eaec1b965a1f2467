"""What follows from a sweep's trials: front, picks, prices, ceiling."""
