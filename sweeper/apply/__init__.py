"""Targets that a recommended configuration is written to; diff, backup, undo."""
