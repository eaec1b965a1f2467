"""sweeper finds the llama.cpp settings that give the most tokens per second for the fewest watts."""

__version__ = "0.1.0"
