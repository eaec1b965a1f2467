"""Simulated machines, recorded tables and contract suites. No module of the product imports this package."""
