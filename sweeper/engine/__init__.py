"""Inference engines: llama.cpp in a worker process, a simulated machine, replay of recorded tables."""
