"""Volumes, their geometry, and how they are read, turned and written: the ground floor."""
