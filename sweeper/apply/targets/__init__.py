"""One file per apply target."""
