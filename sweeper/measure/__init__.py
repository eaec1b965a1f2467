"""Measurement of one trial: windows, statistics, metrics."""
