"""Augmentation of training patches: geometry, random contrast, scanner effects, field of view.

Importing this module imports torch and batchgenerators; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from sslmedsam2.nnunet.contrast import (
    BiasFieldTransform,
    DropAuxiliaryLabelsTransform,
    FieldOfViewTransform,
    IntensityJitterTransform,
    MagnitudeNoiseTransform,
    RandomContrastTransform,
    SliceThicknessTransform,
)
from sslmedsam2.nnunet.online import TwoViewsTransform
from sslmedsam2.nnunet.organs import OrganTargetsTransform

Scales = Sequence[Sequence[float]] | None
"""Sizes of the targets of deep supervision, as shares of the patch; None without it."""


def labelled_transforms(
    patch_size: Sequence[int],
    *,
    rotation: tuple[float, float],
    contrast_probability: float,
    mirror_probability: float,
    scales: Scales,
) -> BasicTransform:
    """Return the augmentation of patches with reference masks; targets have a second channel, of
    other organs.

    Parameters
    ----------
    patch_size
        Voxels along z, y, x.
    rotation
        Smallest and largest angle about each axis, in radians.
    contrast_probability
        Share of patches with a random contrast.
    mirror_probability
        Share of mirrored patches.
    """
    return ComposeTransforms(
        [
            _geometry(patch_size, rotation=rotation),
            _sometimes(contrast_probability, RandomContrastTransform()),
            OrganTargetsTransform(),
            *_scanner_effects(),
            _sometimes(0.3, FieldOfViewTransform()),
            _sometimes(mirror_probability, MirrorTransform((0, 1, 2))),
            *_targets(scales),
        ]
    )


def unlabelled_transforms(
    patch_size: Sequence[int],
    *,
    rotation: tuple[float, float],
    contrast_probability: float,
    mirror_probability: float,
) -> BasicTransform:
    """Return the augmentation of unlabelled patches; parameters as in `labelled_transforms`.

    Both views of a patch have the same geometry. Contrast and scanner effects make the strong one.
    """
    contrast = _sometimes(contrast_probability, RandomContrastTransform())
    return ComposeTransforms(
        [
            _geometry(patch_size, rotation=rotation),
            _sometimes(mirror_probability, MirrorTransform((0, 1, 2))),
            DropAuxiliaryLabelsTransform(),
            TwoViewsTransform(ComposeTransforms([contrast, *_scanner_effects()])),
        ]
    )


def validation_transforms(scales: Scales) -> BasicTransform:
    """Return the label clean-up and the targets of deep supervision."""
    return ComposeTransforms([DropAuxiliaryLabelsTransform(), *_targets(scales)])


def _sometimes(probability: float, transform: BasicTransform) -> RandomTransform:
    return RandomTransform(transform, apply_probability=probability)


def _geometry(patch_size: Sequence[int], *, rotation: tuple[float, float]) -> BasicTransform:
    return SpatialTransform(
        patch_size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0.15,
        elastic_deform_scale=(0.1, 0.25),
        elastic_deform_magnitude=(1, 5),
        p_rotation=0.4,
        rotation=rotation,
        p_scaling=0.5,
        scaling=(0.75, 1.3),
        p_synchronize_scaling_across_axes=0.5,
        mode_seg="nearest",
        border_mode_seg="constant",
        padding_value_seg=-1,
    )


def _scanner_effects() -> list[BasicTransform]:
    coarse = SimulateLowResolutionTransform((0.5, 1.0), True, True, (0,), p_per_channel=1.0)
    return [
        _sometimes(0.25, BiasFieldTransform()),
        _sometimes(0.3, GammaTransform((0.6, 1.6), 0.1, True, 1.0, 1.0)),
        _sometimes(0.5, IntensityJitterTransform()),
        _sometimes(0.15, GaussianBlurTransform((0.5, 1.0), True, False, p_per_channel=1.0)),
        _sometimes(0.15, coarse),
        _sometimes(0.15, SliceThicknessTransform()),
        _sometimes(0.2, GaussianNoiseTransform((0, 0.1), 1.0, True)),
        _sometimes(0.15, MagnitudeNoiseTransform()),
    ]


def _targets(scales: Scales) -> list[BasicTransform]:
    return [] if scales is None else [DownsampleSegForDSTransform(ds_scales=scales)]
