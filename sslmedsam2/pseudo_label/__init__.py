"""``pseudo-label``: label scans with a frozen SAM2 from a few labelled ones."""
