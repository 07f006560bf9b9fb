"""Frozen nnU-Net inference: a model folder in, one liver margin per voxel out."""
