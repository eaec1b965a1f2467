"""Measuring a running server against what was promised."""
