"""Setting power and clock limits, and restoring them however the sweep ends."""
