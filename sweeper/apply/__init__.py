"""Applies a recommended configuration: targets, diff, backup, rollback, and the check that it holds."""
