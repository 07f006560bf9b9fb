"""``retrain``: from a few labelled and many unlabelled scans to frozen weights, in rounds."""
