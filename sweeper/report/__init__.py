"""What a finished sweep shows: terminal tables, plots, HTML, markdown."""
