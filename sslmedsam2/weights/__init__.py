"""Models on disk: manifest with hashes, search order, checkpoints, freezing, downloads."""
