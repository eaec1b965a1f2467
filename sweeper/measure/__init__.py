"""Measuring one trial: windows, statistics, metrics."""
