"""``pseudo-label``: masks of unlabelled volumes by a frozen SAM2 and a few labelled ones."""
