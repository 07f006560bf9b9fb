"""The real volumes are read right and get masks that other tools see on the same grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.imaging.geometry import affine_ras
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical, to_native
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.volume import MaskVolume, Volume
from sslmedsam2.imaging.writing import write_mask

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGES = sorted([*DATA.glob("chaos_mr_t2/*/T2.nii.gz"), *DATA.glob("totalseg_ct/*/CT.nii.gz")])

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not IMAGES, reason="the real volumes are not here"),
]


@pytest.fixture(scope="module", params=IMAGES, ids=[path.parent.name for path in IMAGES])
def labelled(request: pytest.FixtureRequest) -> tuple[Path, Volume, MaskVolume]:
    path: Path = request.param
    return path, read_volume(path), read_mask(path.with_name(f"mask_{path.name}"))


def test_reference_mask_survives_turning_and_writing(
    tmp_path: Path, labelled: tuple[Path, Volume, MaskVolume]
) -> None:
    path, image, reference = labelled
    assert image.repairs == ()
    assert image.geometry.shape_zyx == reference.geometry.shape_zyx
    stored = nib.load(path)
    np.testing.assert_array_equal(image.array_zyx, np.asarray(stored.dataobj).T)
    np.testing.assert_allclose(affine_ras(image.geometry), stored.affine, atol=1e-4)

    reorientation = to_canonical(image).reorientation
    canonical = apply_reorientation(reference.array_zyx, reorientation)
    out = tmp_path / "pred.nii.gz"
    write_mask(to_native(canonical, reorientation), like=image, path=out)

    first, second = sitk.ReadImage(str(path)), sitk.ReadImage(str(out))
    assert first.GetSize() == second.GetSize()
    assert first.GetSpacing() == second.GetSpacing()
    assert first.GetOrigin() == second.GetOrigin()
    assert first.GetDirection() == second.GetDirection()
    assert second.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(second), reference.array_zyx)


def test_liver_lies_to_the_patients_right_and_spine_to_posterior(
    labelled: tuple[Path, Volume, MaskVolume],
) -> None:
    _, image, reference = labelled
    canonical = to_canonical(image)
    liver = apply_reorientation(reference.array_zyx, canonical.reorientation)
    body = canonical.array_zyx > np.quantile(canonical.array_zyx, 0.5)
    _, liver_y, liver_x = (axis.mean() for axis in np.nonzero(liver))
    _, _, body_x = (axis.mean() for axis in np.nonzero(body))
    assert liver_x < body_x
    # The liver's bulk lies in its right lobe, whose dome reaches farther back than the left one.
    left_lobe = liver[:, :, int(body_x) :]
    if left_lobe.any():
        assert np.nonzero(left_lobe)[1].mean() < liver_y
