"""Sensors of power, their trust, limits, and the guardian that gives limits back."""
