"""Measures a running server and compares it with what the sweep promised."""
