"""Simulated machines, recorded tables and contract suites; nothing in the product imports this package."""
