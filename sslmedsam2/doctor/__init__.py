"""``doctor``: check what a run needs."""
