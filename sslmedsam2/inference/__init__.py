"""Frozen nnU-Net inference: from a model folder to one liver margin for each voxel."""
