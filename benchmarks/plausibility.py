"""How many livers, and how many other things, get the status ``check``.

Livers: every real volume with a liver in ``../shared/data`` (T2, T1, coronal, CT). Others: 50
volumes of noise, 50 heads, 50 bottles and 50 slabs of real volumes below the liver, all drawn from
one seed. The shipped weights, ``--mode fast``, no mirroring; what `predict` decides: a volume is
flagged if its mask gets the status ``check`` or there is none.

    python benchmarks/plausibility.py --json benchmarks/results/plausibility.json
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import REAL_DATA, ROOT, parser, report
from scipy import ndimage

from sslmedsam2.imaging.orientation import apply_reorientation
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.volume import Geometry, Source, Volume
from sslmedsam2.inference.masks import ReadyVolume, judge, make_ready
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.plausibility import LiverTraits, liver_traits
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

EACH = 50
SEED = 20261128
MR_SPACING_MM = (5.5, 2.0, 2.0)


def main() -> None:
    """Segment, measure and count."""
    options = parser(__doc__).parse_args()
    spec = read_model_spec(ROOT / "weights" / "liver")
    segmenter = CanonicalSegmenter(spec, EngineOptions("cpu", "fast", mirror=False))
    rows = []
    for kind, name, volume in itertools.chain(livers(), others()):
        found = segmenter.segment(volume.canonical)
        judged = judge(found.mask_zyx, volume, found)
        row = {"kind": kind, "name": name, "volume_ml": round(judged.volume_ml)}
        row |= {"flagged": judged.is_to_check or not judged.volume_ml, "why": judged.warnings}
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
    report({"counts": counts(rows), "rows": rows}, options.json)


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many volumes of each kind there are, and how many of them were flagged."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {
        kind: {
            "volumes": sum(row["kind"] == kind for row in rows),
            "flagged": sum(row["kind"] == kind and row["flagged"] for row in rows),
        }
        for kind in kinds
    }


def livers() -> Iterator[tuple[str, str, ReadyVolume]]:
    """Yield every real volume in which a liver lies."""
    folders = ("chaos_mr_t2", "chaos_mr_t1", "mr_coronal", "totalseg_ct", "btcv_ct")
    for folder in folders:
        for path in sorted((REAL_DATA / folder).glob("*/[TC]*.nii.gz")):
            yield folder, f"{path.parent.name}/{path.name}", ready(path)


def reference_traits() -> list[LiverTraits]:
    """Return what the livers of the reference masks are like."""
    found = []
    for folder in ("chaos_mr_t2", "totalseg_ct", "btcv_ct"):
        for path in sorted((REAL_DATA / folder).glob("*/[TC]*.nii.gz")):
            volume = ready(path).canonical
            mask = read_mask(path.with_name(f"mask_{path.name}")).array_zyx
            traits = liver_traits(
                apply_reorientation(mask, volume.reorientation),
                volume.array_zyx,
                spacing_zyx_mm=volume.spacing_zyx_mm,
                confidence=1.0,
                components=1,
            )
            found.append(traits)
    return found


def ready(path: Path) -> ReadyVolume:
    """Read a volume as ``predict`` does."""
    return make_ready(read_volume(path))


def others() -> Iterator[tuple[str, str, ReadyVolume]]:
    """Yield what holds no liver."""
    random = np.random.default_rng(SEED)
    for number in range(EACH):
        yield "noise", str(number), volume_of(noise(random))
        yield "head", str(number), volume_of(head(random))
        yield "bottle", str(number), volume_of(bottle(random))
    yield from slabs(np.random.default_rng(SEED))


def volume_of(
    array: np.ndarray, spacing_mm: tuple[float, float, float] = MR_SPACING_MM
) -> ReadyVolume:
    """Take an array ``[z, y, x]`` for an axial scan."""
    grid = Geometry(array.shape, spacing_mm, (0.0, 0.0, 0.0), np.eye(3))
    voxels = np.ascontiguousarray(array, np.float32)
    source = Source(Path("computed"), array.shape, voxels.dtype)
    return make_ready(Volume(voxels, grid, source))


def shape(random: np.random.Generator) -> tuple[int, int, int]:
    """Draw the shape of a scan."""
    z, y, x = random.integers((20, 90, 90), (40, 150, 170))
    return int(z), int(y), int(x)


def noise(random: np.random.Generator) -> np.ndarray:
    """Noise as magnitudes, white or smooth."""
    size = shape(random)
    field = random.normal(size=size)
    sigma = random.choice([0.0, 0.0, 1.0, 3.0, 8.0])
    smooth = ndimage.gaussian_filter(field, sigma) if sigma else field
    smooth = smooth / smooth.std()
    white = random.normal(size=size) * random.uniform(0.1, 0.5)
    return np.abs(smooth + white) * 200


def ellipsoid(size: tuple[int, ...], half: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the squared distance from a centre, 1 on the surface of an ellipsoid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij", sparse=True)
    return sum(((axis - c) / h) ** 2 for axis, c, h in zip(axes, at, half, strict=True))


def head(random: np.random.Generator) -> np.ndarray:
    """Scalp, skull, brain with folds and ventricles."""
    size = shape(random)
    at = random.uniform(-0.1, 0.1, 3)
    half = np.array(
        [random.uniform(0.8, 1.2), random.uniform(0.7, 0.9), random.uniform(0.55, 0.75)]
    )
    skin, skull, brain = (ellipsoid(size, half * s, at) < 1 for s in (1.0, 0.93, 0.86))
    folds = ndimage.gaussian_filter(random.normal(size=size), (0.5, 1.5, 1.5))
    grey, white, fluid, fat = random.permutation([250.0, 350.0, 500.0, 650.0])
    image = np.where(skin, fat, 0.0)
    image[skull] = 40
    image[brain] = np.where(folds[brain] > 0, grey, white)
    for side in (-1, 1):
        place = at + np.array([0.0, 0.0, side * 0.12])
        image[ellipsoid(size, half * np.array([0.25, 0.35, 0.1]), place) < 1] = fluid
    return np.abs(image + random.normal(0, random.uniform(5, 25), size))


def bottle(random: np.random.Generator) -> np.ndarray:
    """A cylinder or a ball of one liquid, perhaps with rods in it."""
    size = shape(random)
    at = random.uniform(-0.2, 0.2, 3)
    half = random.uniform(0.35, 0.9, 3)
    if random.random() < 0.6:
        half[0] = 50.0
    inside = ellipsoid(size, half, at) < 1
    image = np.where(inside, random.uniform(200, 900), 0.0)
    for _ in range(random.integers(0, 5)):
        rod = ellipsoid(size, np.array([50.0, 0.1, 0.1]), random.uniform(-0.5, 0.5, 3)) < 1
        image[rod & inside] = random.uniform(50, 900)
    image *= 1 + 0.3 * ndimage.gaussian_filter(random.normal(size=size), 12) * 12
    return np.abs(image + random.normal(0, random.uniform(3, 20), size))


def slabs(random: np.random.Generator) -> Iterator[tuple[str, str, ReadyVolume]]:
    """Yield slices of real volumes below the liver, at least 6."""
    paths = sorted((REAL_DATA / "chaos_mr_t2").glob("*/T2.nii.gz"))
    paths += sorted((REAL_DATA / "btcv_ct").glob("*/CT.nii.gz"))
    below = []
    for path in paths:
        turn = ready(path).canonical.reorientation
        mask = read_mask(path.with_name(f"mask_{path.name}")).array_zyx
        lowest = int(np.flatnonzero(apply_reorientation(mask, turn).any(axis=(1, 2)))[0])
        if lowest > 6:
            below.append((path, lowest - 1))
    for number in range(EACH):
        path, top = below[number % len(below)]
        volume = ready(path).canonical
        height = top if number < len(below) else int(random.integers(6, top + 1))
        array = volume.array_zyx[top - height : top]
        name = f"{path.parent.name} {top - height}-{top}"
        yield "below", name, volume_of(array, volume.spacing_zyx_mm)


if __name__ == "__main__":
    main()
