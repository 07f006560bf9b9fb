"""``run_report.json``, previews and HTML pages."""
