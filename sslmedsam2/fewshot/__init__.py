"""Few-shot branch: a frozen SAM2 labels volumes from a few labelled ones (TFFS-MedSAM2)."""
