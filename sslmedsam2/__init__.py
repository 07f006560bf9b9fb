"""SSL-MedSAM2: liver masks from multi-sequence MRI, and retraining from a few labels."""

__version__ = "0.1.0"
