"""Models: what ships, where it is looked for, whether it is unchanged, how it is frozen."""
