"""Where the units of a run are computed: this process, or the workers of a Dask cluster."""
