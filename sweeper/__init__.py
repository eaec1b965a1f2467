"""sweeper: finds the llama.cpp settings nobody can beat in speed without paying in watts."""

__version__ = "0.1.0"
