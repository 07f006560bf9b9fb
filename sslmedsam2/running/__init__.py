"""Who does a run's units, where: this process, or workers of a Dask cluster."""
