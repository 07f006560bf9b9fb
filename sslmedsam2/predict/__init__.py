"""``predict``: from an input folder to liver masks, previews and the run report."""
