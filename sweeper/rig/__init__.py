"""Rigs. A rig is an engine with its meter, limits, model and clock; trials run on it."""
