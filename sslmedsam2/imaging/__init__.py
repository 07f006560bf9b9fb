"""Volumes and their geometry: reading, orientation, writing. Independent of the challenge."""
