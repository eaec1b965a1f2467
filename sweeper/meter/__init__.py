"""Power measurement."""
