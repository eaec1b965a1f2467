"""Inference engines: the Protocol, and llama.cpp in a worker process."""
