"""TFFS-MedSAM2: a frozen SAM2 carries masks from a few labelled volumes to unlabelled ones."""
