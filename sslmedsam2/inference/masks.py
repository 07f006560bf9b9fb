"""Steps before and after the network that the API and all commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.orientation import to_canonical, to_native
from sslmedsam2.imaging.volume import CanonicalVolume, MaskZYX, Volume, faces, mask_volume_ml
from sslmedsam2.inference.confidence import DiceEstimate
from sslmedsam2.inference.plausibility import (
    has_usual_volume,
    implausible_traits,
    is_implausible,
    liver_traits,
)
from sslmedsam2.inference.segmenter import CanonicalSegmentation

_LOW_CONFIDENCE = 0.8
_LARGE_SHARE = 0.2
"""Without this sign 3 of 13 wrong masks of unseen scans passed, with it none; 3 of 38 right ones
have it (`benchmarks/wrong_masks.py`)."""
_HOUNSFIELD_NOTE = (
    "hounsfield_window: the values look like CT and were clipped to the abdominal window"
)


@dataclass(frozen=True)
class ReadyVolume:
    """A volume as read, its canonical form for the network, and notes on corrections."""

    volume: Volume
    canonical: CanonicalVolume
    notes: tuple[str, ...]


@dataclass(frozen=True)
class JudgedMask:
    """A liver mask in the orientation of its image, with warnings.

    Attributes
    ----------
    mask_zyx
        On ``Volume.geometry``.
    volume_ml
        Volume of the mask.
    touches_border
        Whether the mask reaches a face of the volume.
    warnings
        Each as ``name: sentence``: repairs of the image, problems of the computation, doubts about
        the mask.
    is_to_check
        Whether a person should look at the mask: it does not look like a liver, has an unusual
        volume or a low estimated Dice, or the network found a second large region.
    estimate
        Estimated Dice; None for a mask that does not look like a liver or has an unusual volume,
        for a guess, and without a calibration.
    """

    mask_zyx: MaskZYX
    volume_ml: float
    touches_border: bool
    warnings: tuple[str, ...]
    is_to_check: bool = False
    estimate: DiceEstimate | None = None


def make_ready(volume: Volume) -> ReadyVolume:
    """Turn a volume to the canonical orientation, and clip it if it is a CT."""
    canonical = to_canonical(volume)
    array, clipped = window_if_hounsfield(canonical.array_zyx, modality=volume.modality)
    notes = (*volume.repairs, _HOUNSFIELD_NOTE) if clipped else volume.repairs
    return ReadyVolume(volume, replace(canonical, array_zyx=array), notes)


def judge(mask_zyx: MaskZYX, ready: ReadyVolume, found: CanonicalSegmentation) -> JudgedMask:
    """Turn a canonical mask to the orientation of the image, and add warnings.

    ``mask_zyx`` is ``found.mask_zyx`` or ``found.relaxed_mask_zyx``.
    """
    canonical = ready.canonical
    volume_ml = mask_volume_ml(mask_zyx, spacing_zyx_mm=canonical.spacing_zyx_mm)
    touches = _touches_border(mask_zyx)
    doubts = _doubts(found.mean_confidence, volume_ml=volume_ml, touches_border=touches)
    unlike = _unlike_a_liver(mask_zyx, ready, found) if volume_ml else ()
    is_unlike = bool(unlike) or not has_usual_volume(volume_ml)
    # The calibration is valid for livers only: the network may be just as sure of other things.
    estimate = found.estimate if mask_zyx is found.mask_zyx and not is_unlike else None
    if estimate is not None and estimate.is_to_check:
        doubts += (f"low_estimate: estimated Dice {estimate.dice:.2f}; check the outline",)
    if unlike:
        doubts += (
            f"no_typical_liver: {', '.join(unlike)}; check that it is an abdominal scan "
            "in the right orientation",
        )
    is_ambiguous = found.removed_share >= _LARGE_SHARE and mask_zyx is found.mask_zyx
    if is_ambiguous:
        doubts += (
            f"second_region: another region, {found.removed_share:.0%} as large as the mask, was "
            "removed; check which of them is the liver",
        )
    return JudgedMask(
        mask_zyx=to_native(mask_zyx, canonical.reorientation),
        volume_ml=volume_ml,
        touches_border=touches,
        warnings=(*ready.notes, *found.warnings, *doubts),
        is_to_check=is_unlike or is_ambiguous or (estimate is not None and estimate.is_to_check),
        estimate=estimate,
    )


def _unlike_a_liver(
    mask_zyx: MaskZYX, ready: ReadyVolume, found: CanonicalSegmentation
) -> tuple[str, ...]:
    traits = liver_traits(
        mask_zyx,
        ready.canonical.array_zyx,
        spacing_zyx_mm=ready.canonical.spacing_zyx_mm,
        confidence=found.mean_confidence,
        components=found.n_components,
    )
    unlike = implausible_traits(traits)
    return unlike if is_implausible(unlike) else ()


def _doubts(confidence: float | None, *, volume_ml: float, touches_border: bool) -> tuple[str, ...]:
    """Return warnings about the mask, as ``name: sentence``."""
    if volume_ml == 0:
        return ("no_liver: the network found none; check that it is an abdominal scan",)
    doubts = []
    if not has_usual_volume(volume_ml):
        doubts.append(f"implausible_volume: {volume_ml:.0f} ml is no usual size for a liver")
    if touches_border:
        doubts.append("touches_border: the liver reaches the edge of the scan, or is cut off")
    if confidence is not None and confidence < _LOW_CONFIDENCE:
        doubts.append(f"low_confidence: mean foreground probability {confidence:.2f}")
    return tuple(doubts)


def _touches_border(mask_zyx: MaskZYX) -> bool:
    return any(bool(face.any()) for face in faces(mask_zyx))
