"""Randomised contrast, so that a network trained on one labelled sequence serves others.

Only a few sequences have reference masks, yet the network must serve every sequence and vendor.
Each training patch is therefore repainted at random before nnU-Net's usual noise, blur and gamma.
The ideas are those of SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789: a random
contrast for each label) and GIN (Ouyang et al. 2022, arXiv:2111.12525: random shallow
convolutions), kept anchored to the real texture so that anatomy stays recognisable.

All functions take a patch ``image`` of shape ``(1, z, y, x)``, roughly z-scored, and return the
same shape. Randomness comes from torch's global generator, which the trainer seeds per epoch, and
at the start of every loader process.
"""

from __future__ import annotations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from torch import Tensor
from torch.nn import functional as nnf

from sslmedsam2.imaging.labelled import N_ORGANS
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, IGNORE, LIVER, UNSURE_LIVER

_QUANTILE_SAMPLE = 20_000
_CURVE_BINS = 1024
_AIR_BELOW = 0.06
"""Share of the intensity range below which a voxel is taken for air."""
_CLOSING_VOXELS = 8
_BLOB_SIZE = ((0.08, 0.25), (0.06, 0.2), (0.06, 0.2))
"""Half axes, as shares of the patch along z, y and x."""


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _chance(probability: float) -> bool:
    return torch.rand(()).item() < probability


def to_unit_range(image: Tensor) -> Tensor:
    """Map the 0.5-99.5 % intensity range to [0, 1] and clip the rest."""
    flat = image.flatten()
    step = max(1, flat.numel() // _QUANTILE_SAMPLE)
    low, high = torch.quantile(flat[::step], torch.tensor([0.005, 0.995]))
    return ((image - low) / (high - low).clamp_min(1e-6)).clamp_(0, 1)


def standardise(image: Tensor) -> Tensor:
    """Give the patch zero mean and unit standard deviation, as nnU-Net's z-score does."""
    return (image - image.mean()) / image.std().clamp_min(1e-6)


def random_curve(unit: Tensor) -> Tensor:
    """Send intensities through a random piecewise-linear curve on [0, 1].

    Half of the curves rise or fall, the others wander. Most keep the darkest tenth at the bottom,
    because air is dark in every sequence.
    """
    n_knots = int(torch.randint(4, 9, ()).item())
    knots = torch.rand(n_knots)
    if _chance(0.5):
        knots, _ = knots.sort(descending=_chance(0.3))
    table = nnf.interpolate(
        knots[None, None], size=_CURVE_BINS, mode="linear", align_corners=True
    ).flatten()
    if _chance(0.8):
        air = torch.linspace(0, 1, _CURVE_BINS).div(0.1).clamp_max(1.0)
        table = table * air
    position = unit * (_CURVE_BINS - 1)
    index = position.long().clamp_max(_CURVE_BINS - 2)
    fraction = position - index
    return table[index] * (1 - fraction) + table[index + 1] * fraction


def random_label_contrast(unit: Tensor, segmentation: Tensor) -> Tensor:
    """Shift and stretch each labelled organ's intensities by itself, with soft borders.

    A negative stretch turns bright vessels dark. ``segmentation`` is ``(1, z, y, x)``: liver and
    auxiliary organs.
    """
    out = unit
    for label in (LIVER, *range(AUXILIARY_OFFSET + 2, AUXILIARY_OFFSET + N_ORGANS + 1)):
        inside = _liver(segmentation) if label == LIVER else segmentation == label
        if not inside.any() or _chance(0.2):
            continue
        mean = unit[inside].mean()
        target = (mean + 0.25 * torch.randn(())).clamp(0.02, 1.2)
        out = _repaint(out, unit, inside, target=target.item(), gain=_random_gain())
    return out


def bright_liver(unit: Tensor, segmentation: Tensor) -> Tensor:
    """Make the liver the brightest organ, as the hepatobiliary phase (GED4) and CT do.

    Everything else is dimmed, so that no other organ keeps T2's brightness.
    """
    inside = _liver(segmentation)
    brightest_other = _uniform(0.3, 0.8)
    dimmed = unit * brightest_other
    if not inside.any():
        return dimmed
    target = _uniform(max(0.65, brightest_other), 1.1)
    return _repaint(dimmed, unit, inside, target=target, gain=_random_gain())


def _liver(segmentation: Tensor) -> Tensor:
    return (segmentation == LIVER) | (segmentation == UNSURE_LIVER)


def bright_fat(painted: Tensor, unit: Tensor, segmentation: Tensor) -> Tensor:
    """Paint a ring of fat under the skin, which fat-suppressed training images lack.

    Without fat suppression, as in most T1, that ring is often the brightest part of the image.
    ``unit`` is the patch before any repainting, used to separate body and air. Labelled organs do
    not change.
    """
    depth = int(torch.randint(2, 11, ()).item())
    body = ((unit > _AIR_BELOW) & (segmentation >= 0)).float()
    # Closing fills lungs and bowel gas at their rims, which are no skin.
    closed = _erode(_dilate(body, _CLOSING_VOXELS), _CLOSING_VOXELS)
    ring = (body > 0) & (_erode(closed, depth) == 0) & (segmentation == 0)
    weight = _blurred(ring)
    fat = _uniform(0.5, 1.1) + 0.3 * (unit - 0.2)
    return painted + weight * (fat - painted)


def bright_fluid(painted: Tensor, unit: Tensor, segmentation: Tensor) -> Tensor:
    """Fill a random ellipsoid of unlabelled tissue with something much brighter than all else.

    A stomach or bowel full of fluid moves the z-score of everything: without such patches a
    network loses the whole liver. ``unit`` is the patch before any repainting.
    """
    place = _random_ellipsoid(unit) & (segmentation == 0) & (unit > _AIR_BELOW)
    return painted + _blurred(place) * (_uniform(1.2, 4.0) - painted)


def liver_like_neighbours(painted: Tensor, unit: Tensor, segmentation: Tensor) -> Tensor:
    """Give organs and a few ellipsoids of unlabelled tissue the liver's own brightness.

    In T1 without contrast agent the heart, the stomach's wall, muscle and spleen are nearly as
    grey as the liver: only shape, place and borders differ. ``unit`` is the patch before
    any repainting. A patch without liver is not changed.
    """
    liver = _liver(segmentation)
    if not liver.any():
        return painted
    brightness = painted[liver].mean()
    for label in range(AUXILIARY_OFFSET + 2, AUXILIARY_OFFSET + N_ORGANS + 1):
        inside = segmentation == label
        if inside.any() and _chance(0.5):
            painted = _repaint(
                painted, unit, inside, target=_near(brightness), gain=_uniform(0.3, 1)
            )
    for _ in range(int(torch.randint(1, 4, ()).item())):
        inside = _random_ellipsoid(unit) & (segmentation == 0) & (unit > _AIR_BELOW)
        if inside.any():
            painted = _repaint(
                painted, unit, inside, target=_near(brightness), gain=_uniform(0.3, 1)
            )
    return painted


def _near(brightness: Tensor) -> float:
    return (brightness + 0.05 * torch.randn(())).item()


def _random_ellipsoid(unit: Tensor) -> Tensor:
    """Return a mask of a random ellipsoid, of the shape of the patch."""
    shape = unit.shape[1:]
    half_axes = [n * _uniform(low, high) for n, (low, high) in zip(shape, _BLOB_SIZE, strict=True)]
    centre = [n * _uniform(0.1, 0.9) for n in shape]
    z, y, x = (
        ((torch.arange(n) - c) / a).square()
        for n, c, a in zip(shape, centre, half_axes, strict=True)
    )
    return (z[:, None, None] + y[:, None] + x)[None] < 1


def _dilate(mask: Tensor, voxels: int) -> Tensor:
    """Widen a mask within its slices; a square is a row of lines, which is much quicker."""
    size = 2 * voxels + 1
    along_x = nnf.max_pool3d(mask[None], (1, 1, size), stride=1, padding=(0, 0, voxels))
    return nnf.max_pool3d(along_x, (1, size, 1), stride=1, padding=(0, voxels, 0))[0]


def _erode(mask: Tensor, voxels: int) -> Tensor:
    return 1 - _dilate(1 - mask, voxels)


def _blurred(mask: Tensor) -> Tensor:
    """Return a mask as weights with soft borders within slices."""
    return nnf.avg_pool3d(mask[None].float(), kernel_size=(1, 3, 3), stride=1, padding=(0, 1, 1))[0]


def _random_gain() -> float:
    return _uniform(0.2, 1.6) * (-1 if _chance(0.35) else 1)


def _repaint(canvas: Tensor, unit: Tensor, inside: Tensor, *, target: float, gain: float) -> Tensor:
    """Paint an organ's own texture, moved to ``target`` and stretched, over the canvas."""
    texture = target + gain * (unit - unit[inside].mean())
    return canvas + _blurred(inside) * (texture - canvas)


def random_convolutions(unit: Tensor) -> Tensor:
    """Blend the patch with the output of a random shallow network (GIN)."""
    hidden = unit[None]
    channels = 1
    for layer in range(3):
        width = 1 if layer == 2 else 2
        kernel = torch.randn(width, channels, 1, *([3, 3] if _chance(0.5) else [1, 1]))
        shift = torch.randn(width)
        hidden = nnf.conv3d(hidden, kernel, shift, padding="same")
        if layer < 2:
            hidden = nnf.leaky_relu(hidden, 0.01)
        channels = width
    mixed = standardise(hidden[0]) * unit.std() + unit.mean()
    alpha = torch.rand(())
    return alpha * mixed + (1 - alpha) * unit


class RandomContrastTransform(BasicTransform):
    """Repaint a patch with a random contrast, then z-score it again.

    Must run while the segmentation still holds the auxiliary organ labels.
    """

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Replace ``image`` in nnU-Net's sample dictionary; ``segmentation`` is only read."""
        unit = to_unit_range(data_dict["image"])
        data_dict["image"] = standardise(self._repainted(unit, data_dict["segmentation"]))
        return data_dict

    @staticmethod
    def _repainted(unit: Tensor, segmentation: Tensor) -> Tensor:
        if _chance(0.25):
            painted = bright_liver(unit, segmentation).clamp(0, 1.2)
        else:
            painted = random_label_contrast(unit, segmentation) if _chance(0.7) else unit
            kind = torch.rand(()).item()
            if kind < 0.6:
                painted = random_curve(painted.clamp(0, 1))
            elif kind < 0.8:
                painted = random_convolutions(painted)
        if _chance(0.25):
            painted = liver_like_neighbours(painted, unit, segmentation)
        if _chance(0.35):
            painted = bright_fat(painted, unit, segmentation)
        return bright_fluid(painted, unit, segmentation) if _chance(0.2) else painted


class IntensityJitterTransform(ImageOnlyTransform):
    """Small global gain and offset: z-scores depend on the field of view."""

    def _apply_to_image(self, img: Tensor, **_params: object) -> Tensor:
        return img * _uniform(0.7, 1.4) + _uniform(-0.4, 0.4)


class BiasFieldTransform(ImageOnlyTransform):
    """Multiply by a smooth random field, as surface coils do."""

    def _apply_to_image(self, img: Tensor, **_params: object) -> Tensor:
        grid = torch.randn(1, 1, 3, 4, 4) * _uniform(0.05, 0.35)
        field = nnf.interpolate(grid, size=img.shape[1:], mode="trilinear", align_corners=True)
        floor = img.amin()
        return (img - floor) * field[0].exp() + floor


class SliceThicknessTransform(ImageOnlyTransform):
    """Simulate thick slices: average neighbours along z, keep the grid."""

    def _apply_to_image(self, img: Tensor, **_params: object) -> Tensor:
        depth = img.shape[1]
        coarse = max(4, round(depth * _uniform(0.4, 0.8)))
        thick = nnf.interpolate(img[None], size=(coarse, *img.shape[2:]), mode="area")
        return nnf.interpolate(thick, size=img.shape[1:], mode="trilinear", align_corners=False)[0]


class MagnitudeNoiseTransform(ImageOnlyTransform):
    """Add strong noise as a magnitude image has it (Rician), then z-score again.

    The deviation of the noise is 0.1 to 1.5 standard deviations of the patch: scans with noise
    that hides the borders of organs. Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618.
    """

    def _apply_to_image(self, img: Tensor, **_params: object) -> Tensor:
        sigma = _uniform(0.1, 1.5)
        floor = torch.quantile(img.flatten()[:: max(1, img.numel() // _QUANTILE_SAMPLE)], 0.01)
        real = img - floor + sigma * torch.randn_like(img)
        return standardise(torch.hypot(real, sigma * torch.randn_like(img)))


class FieldOfViewTransform(BasicTransform):
    """Blank everything outside a random slab, as a scan that ends inside the liver does.

    Half of the slabs are cut along z, a third along x and the others along y. Blanked voxels get
    0, the value nnU-Net pads with, and the background label.
    """

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Crop ``image`` and ``segmentation`` alike."""
        axis = 1 if _chance(0.5) else 3 if _chance(0.67) else 2
        length = data_dict["image"].shape[axis]
        thickness = int(length * _uniform(0.35, 0.9))
        start = int(torch.randint(0, length - thickness + 1, ()).item())
        for key in ("image", "segmentation"):
            tensor = torch.zeros_like(data_dict[key])
            kept = data_dict[key].narrow(axis, start, thickness)
            tensor.narrow(axis, start, thickness).copy_(kept)
            data_dict[key] = tensor
        return data_dict


class DropAuxiliaryLabelsTransform(BasicTransform):
    """Turn auxiliary organs, and nnU-Net's -1 outside the image, into background, and what is
    only probably liver into the ignore label."""

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Rewrite ``segmentation``; ``image`` is left alone."""
        segmentation = data_dict["segmentation"]
        unused = (segmentation > AUXILIARY_OFFSET) | (segmentation < 0)
        data_dict["segmentation"] = segmentation.masked_fill(unused, 0).masked_fill(
            segmentation == UNSURE_LIVER, IGNORE
        )
        return data_dict
