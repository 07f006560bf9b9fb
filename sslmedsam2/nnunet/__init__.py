"""Supervised branch (FSL-nnUNet): data set, plans, augmentation, training with nnU-Net."""
