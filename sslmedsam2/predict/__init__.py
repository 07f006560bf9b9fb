"""``predict``: from an input folder to liver masks, previews and ``run_report.json``."""
