"""Measuring power."""
