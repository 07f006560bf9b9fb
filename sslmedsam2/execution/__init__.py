"""Executors: compute the units of a run in this process or on a Dask cluster."""
