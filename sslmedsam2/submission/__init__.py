"""The commands ``evaluate``, ``validate`` and ``package``."""
