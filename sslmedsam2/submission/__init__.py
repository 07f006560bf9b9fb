"""The challenge's side of a run: ``evaluate``, ``validate`` and ``package``."""
