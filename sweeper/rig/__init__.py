"""What trials run on: an engine with its meter, limits, model and clock, opened and closed."""
