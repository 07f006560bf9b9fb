"""Synthetic abdomens: analytic anatomy, rendered as the MRI sequences the challenge uses."""
