"""Label values of training data.

The network learns liver against background. Masks of other organs, where they exist, are kept in
the training data as *auxiliary* labels: the contrast augmentation changes each organ separately
and removes these labels before the loss. Uncertain voxels of a pseudo label get nnU-Net's ignore
label.
"""

from __future__ import annotations

from typing import Final

BACKGROUND: Final = 0
LIVER: Final = 1
IGNORE: Final = 2
UNSURE_LIVER: Final = 3
"""Liver by the pseudo mask, but uncertain: repainted with the liver, then ignored. Were it not
repainted, the liver would keep a rim of another brightness, and networks would learn to stop
short of it."""
AUXILIARY_OFFSET: Final = 10
"""Organ ``k`` of an ``organs_*`` file is stored as ``AUXILIARY_OFFSET + k``, above the ignore
label, which must be the highest *trained* one."""

TRAINED_LABELS: Final = {"background": BACKGROUND, "liver": LIVER}
"""The ``labels`` entry of nnU-Net's dataset.json."""

TRAINED_LABELS_WITH_IGNORE: Final = {**TRAINED_LABELS, "ignore": IGNORE}
"""The same where pseudo masks take part."""
