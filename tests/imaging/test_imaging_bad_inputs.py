"""Every kind of bad input is refused by its name or repaired by its name."""

from __future__ import annotations

import gzip
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import BAD_INPUTS, SHAPE_XYZ, BadInput, nifti_bytes

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.reading import read_volume

REFUSED = {name: bad for name, bad in BAD_INPUTS.items() if bad.kind}
REPAIRED = {name: bad for name, bad in BAD_INPUTS.items() if bad.repair}


def test_table_is_complete() -> None:
    assert len(REFUSED) + len(REPAIRED) == len(BAD_INPUTS)
    assert len({bad.kind for bad in REFUSED.values()}) >= 20


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED)
def test_refused_with_its_kind(tmp_path: Path, bad: BadInput) -> None:
    path = bad.write(tmp_path, "GED4")
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert caught.value.kind == bad.kind
    assert caught.value.subject == str(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", REPAIRED.values(), ids=REPAIRED)
def test_repaired_by_its_name(tmp_path: Path, bad: BadInput) -> None:
    volume = read_volume(bad.write(tmp_path, "GED4"))
    assert [note.split(":")[0] for note in volume.repairs] == [bad.repair]
    assert np.isfinite(volume.array_zyx).all()
    assert volume.array_zyx.shape == SHAPE_XYZ[::-1]
    direction = volume.geometry.direction_xyz
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in REFUSED if "_claims_too_" in name])
def test_boastful_header_allocates_nothing(tmp_path: Path, name: str) -> None:
    path = BAD_INPUTS[name].write(tmp_path, "GED4")
    tracemalloc.start()
    with pytest.raises(InputError):
        read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_non_finite_voxels_take_the_lowest_finite_value(tmp_path: Path) -> None:
    voxels = np.arange(-300, np.prod(SHAPE_XYZ) - 300, dtype=np.float32).reshape(SHAPE_XYZ)
    voxels[3, 4, 5], voxels[6, 7, 2], voxels[0, 9, 1] = np.nan, np.inf, -np.inf
    path = tmp_path / "CT.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(voxels)))
    volume = read_volume(path)
    expected = np.where(np.isfinite(voxels), voxels, -300)
    np.testing.assert_array_equal(volume.array_zyx, expected.T)
    assert "3 NaN or infinite voxels" in volume.repairs[0]


def test_symlink_loop_is_a_broken_symlink(tmp_path: Path) -> None:
    path = tmp_path / "GED4.nii.gz"
    path.symlink_to(path)
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert caught.value.kind == "broken_symlink"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can put rights aside and back")
def test_superuser_that_drops_its_rights_is_denied() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "GED4.nii.gz"
        path.write_bytes(gzip.compress(nifti_bytes()))
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError) as caught:
                read_volume(path)
        finally:
            os.seteuid(0)
    assert caught.value.kind == "permission_denied"
