"""``retrain``: a few labelled and many unlabelled volumes to frozen weights, in rounds."""
