"""How bright each tissue is in each sequence, relative to a full scale of about 1.

The figures follow the well-known appearance of tissues: fat-suppressed T2 (fluid brightest, spleen
brighter than liver), fat-suppressed T1 gradient echo (liver and pancreas brighter than spleen,
fluid dark), diffusion weighting at b = 800 (spleen and kidney bright, fluid and vessels dark) and
the phases after a hepatobiliary agent (arterial GED1 to hepatobiliary GED4: liver brightest, its
vessels dark).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SEQUENCES = ("T2", "T1", "DWI_800", "GED1", "GED2", "GED3", "GED4")
_TABLE: Mapping[str, tuple[float, ...]] = {
    #                   T2    T1   DWI   GED1  GED2  GED3  GED4
    "skin":            (0.22, 0.30, 0.05, 0.30, 0.32, 0.32, 0.30),
    "fat":             (0.19, 0.22, 0.05, 0.20, 0.20, 0.20, 0.24),
    "muscle":          (0.20, 0.44, 0.13, 0.36, 0.40, 0.40, 0.42),
    "cortical_bone":   (0.07, 0.12, 0.03, 0.12, 0.12, 0.12, 0.12),
    "marrow":          (0.32, 0.32, 0.14, 0.30, 0.34, 0.34, 0.32),
    "disc":            (0.45, 0.36, 0.14, 0.28, 0.30, 0.30, 0.30),
    "csf":             (1.05, 0.14, 0.10, 0.14, 0.14, 0.14, 0.14),
    "cord":            (0.62, 0.38, 0.48, 0.36, 0.38, 0.38, 0.36),
    "lung":            (0.03, 0.05, 0.02, 0.06, 0.06, 0.06, 0.06),
    "heart_muscle":    (0.36, 0.42, 0.12, 0.55, 0.60, 0.56, 0.46),
    "heart_blood":     (0.26, 0.34, 0.04, 0.95, 0.72, 0.60, 0.46),
    "vessel_wall":     (0.40, 0.38, 0.08, 0.50, 0.55, 0.50, 0.42),
    "aorta":           (0.20, 0.28, 0.03, 1.05, 0.72, 0.60, 0.44),
    "cava":            (0.24, 0.30, 0.04, 0.50, 0.70, 0.60, 0.44),
    "liver":           (0.43, 0.60, 0.36, 0.50, 0.68, 0.74, 0.82),
    "portal_vein":     (0.80, 0.36, 0.08, 0.48, 0.88, 0.66, 0.46),
    "hepatic_vein":    (0.74, 0.36, 0.08, 0.40, 0.84, 0.64, 0.45),
    "gallbladder_wall": (0.42, 0.42, 0.20, 0.42, 0.46, 0.44, 0.40),
    "bile":            (1.06, 0.30, 0.16, 0.24, 0.24, 0.26, 0.34),
    "spleen":          (0.80, 0.42, 0.95, 0.78, 0.72, 0.62, 0.52),
    "kidney_cortex":   (0.84, 0.50, 0.74, 0.98, 0.88, 0.78, 0.64),
    "kidney_medulla":  (0.96, 0.38, 0.70, 0.50, 0.80, 0.80, 0.58),
    "pancreas":        (0.42, 0.62, 0.34, 0.70, 0.64, 0.58, 0.52),
    "stomach_wall":    (0.44, 0.44, 0.20, 0.55, 0.56, 0.52, 0.46),
    "stomach_content": (0.88, 0.26, 0.12, 0.22, 0.22, 0.22, 0.22),
    "bowel_wall":      (0.48, 0.44, 0.22, 0.52, 0.54, 0.50, 0.44),
    "chyme":           (0.66, 0.34, 0.18, 0.28, 0.28, 0.28, 0.28),
    "fluid":           (0.98, 0.20, 0.12, 0.18, 0.18, 0.18, 0.18),
    "stool":           (0.28, 0.40, 0.12, 0.36, 0.36, 0.36, 0.36),
    "gas":             (0.03, 0.04, 0.02, 0.04, 0.04, 0.04, 0.04),
}  # fmt: skip

# Relative strength of the mottle inside a tissue; 0.05 where a tissue is not named.
_MOTTLE: Mapping[str, float] = {
    "fat": 0.10, "chyme": 0.20, "stool": 0.45, "bowel_wall": 0.15, "stomach_content": 0.22,
    "lung": 0.5, "heart_blood": 0.25, "heart_muscle": 0.15, "muscle": 0.14, "marrow": 0.12,
    "pancreas": 0.15, "kidney_medulla": 0.12, "csf": 0.03, "bile": 0.03, "fluid": 0.06,
    "aorta": 0.25, "cava": 0.25,
}  # fmt: skip
_DEFAULT_MOTTLE = 0.05


@dataclass(frozen=True)
class Appearance:
    """What the scanner adds to one sequence.

    ``full_scale`` is the stored value of relative brightness 1, ``noise`` the standard deviation
    of each channel of the complex noise and ``blur_mm`` the in-plane Gaussian sigma.
    """

    full_scale: float
    noise: float
    blur_mm: float


_APPEARANCES: Mapping[str, Appearance] = {
    "T2": Appearance(full_scale=300, noise=0.006, blur_mm=0.7),
    "T1": Appearance(full_scale=260, noise=0.007, blur_mm=0.7),
    "DWI_800": Appearance(full_scale=150, noise=0.015, blur_mm=2.0),
}
_DYNAMIC = Appearance(full_scale=220, noise=0.009, blur_mm=0.6)


def appearance(sequence: str) -> Appearance:
    """The scanner's traits for a sequence; the dynamic phases share one protocol."""
    return _APPEARANCES.get(sequence, _DYNAMIC)


def tissue_brightness(sequence: str, *, rng: np.random.Generator) -> dict[str, float]:
    """Relative brightness by tissue, each off its table value by up to 6 %."""
    column = SEQUENCES.index(sequence)
    return {tissue: row[column] * float(rng.uniform(0.94, 1.06)) for tissue, row in _TABLE.items()}


def mottle(tissue: str) -> float:
    """Relative strength of the texture inside a tissue."""
    return _MOTTLE.get(tissue, _DEFAULT_MOTTLE)
