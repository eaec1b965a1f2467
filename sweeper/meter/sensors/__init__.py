"""One file per power sensor."""
