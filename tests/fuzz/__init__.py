"""Mutated files for every reader of the project: see ``__main__.py`` for the command."""
