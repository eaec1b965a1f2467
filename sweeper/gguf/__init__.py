"""GGUF files: reading headers, model shapes, synthetic models, quantisation, memory forecast, quality."""
