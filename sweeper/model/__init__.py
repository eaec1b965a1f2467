"""Models: headers, files, quantisations, quality, memory forecasts."""
