"""Which voxels of a mask are liver, for every way in which masks are shared."""

import logging

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from tiny_scans import CANONICAL_AFFINE_RAS, write_scan

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import (
    check_labelled,
    read_label_map,
    read_labelled,
    read_liver_mask,
)
from sslmedsam2.imaging.reading import read_volume

SHAPE_ZYX = (7, 9, 11)
LIVER_TAG = "TerminologyEntry:3D Slicer~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~"


def _liver():
    liver = np.zeros(SHAPE_ZYX, np.uint8)
    liver[2:5, 3:7, 1:6] = 1
    return liver


@pytest.fixture
def image(tmp_path):
    """An image, and where its mask belongs."""
    noise = np.random.default_rng(0).normal(100, 20, SHAPE_ZYX)
    path = write_scan(tmp_path / "T2.nii.gz", noise)
    return ImageFile(case="c", sequence="T2", path=path, mask=tmp_path / "mask_T2.nii.gz")


def _write_float(path, array_zyx):
    nib.save(nib.Nifti1Image(array_zyx.transpose(2, 1, 0).astype("f4"), CANONICAL_AFFINE_RAS), path)
    return path


def _write_nrrd(path, array, *, like, start_xyz=(0, 0, 0), fields=None, directions=None):
    """Write voxels ``[z, y, x]`` or ``[z, y, x, layer]`` as a part of an image's lattice."""
    grid = read_volume(like).geometry
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    direction = np.array(grid.direction_xyz)
    spacing = np.array(grid.spacing_zyx_mm[::-1])
    origin = np.array(grid.origin_xyz_mm) + direction @ (spacing * np.array(start_xyz))
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((direction if directions is None else directions).ravel().tolist())
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("value", [1, 2, 63, 255])
def test_any_one_foreground_value_is_liver(image, value):
    write_scan(image.mask, _liver() * value, dtype=np.uint8)

    read = read_labelled(image)
    assert np.array_equal(read.labels_zyx, _liver())
    assert read.organs_zyx is None
    reported = f"{image.mask}: label: the value {value} is taken as the liver"
    assert read.notes == (() if value == 1 else (reported,))


def test_several_values_are_refused_and_listed(image):
    organs = _liver() * 63
    organs[0, :3] = 126
    write_scan(image.mask, organs, dtype=np.uint8)

    with pytest.raises(InputError, match=r"more than two values \(0, 63, 126\).*--label") as error:
        read_labelled(image)
    assert error.value.kind == "not_a_mask"


def test_label_chooses_among_several_values(image):
    organs = _liver() * 63
    organs[0, :3] = 126
    write_scan(image.mask, organs, dtype=np.uint8)

    chosen = ImageFile(case="c", sequence="T2", path=image.path, mask=image.mask, label=63)
    assert np.array_equal(read_labelled(chosen).labels_zyx, _liver())


def test_mask_without_the_label_asked_for_is_refused_even_if_it_holds_one_value(tmp_path):
    path = write_scan(tmp_path / "mask.nii.gz", _liver() * 4, dtype=np.uint8)

    with pytest.raises(InputError, match=r"no voxel has the label 1; it holds the values 0, 4"):
        read_liver_mask(path, label=1)
    assert read_liver_mask(path, label=1, strict=False).array_zyx.sum() == _liver().sum()


def test_soft_mask_is_rounded_with_a_note(image):
    soft = _liver() * 0.999999
    soft[0, 0, 0] = 0.0004
    _write_float(image.mask, soft)

    read = read_labelled(image)
    assert np.array_equal(read.labels_zyx, _liver())
    (note,) = read.notes
    assert "mask_T2.nii.gz: soft_mask: " in note


@pytest.mark.parametrize("label", [None, 1])
def test_mask_with_values_in_between_is_refused(image, label):
    soft = _liver().astype(float)
    soft[2, 3, 1] = 0.4
    _write_float(image.mask, soft)

    with pytest.raises(InputError, match="more than two values") as error:
        read_liver_mask(image.mask, label=label)
    assert error.value.kind == "not_a_mask"


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_mask_with_a_value_that_is_no_label_is_refused(tmp_path, value):
    mask = _liver().astype(float)
    mask[0, 0, 0] = value

    with pytest.raises(InputError) as error:
        read_liver_mask(_write_float(tmp_path / "mask.nii.gz", mask))
    assert error.value.kind == "not_a_mask"


def test_a_mask_of_every_voxel_is_refused_with_an_image(image):
    _write_float(image.mask, np.ones(SHAPE_ZYX))

    with pytest.raises(InputError, match="every voxel") as error:
        read_labelled(image)
    assert error.value.kind == "full_mask"


def test_empty_mask_is_legal_by_itself_and_refused_with_an_image(image):
    write_scan(image.mask, np.zeros(SHAPE_ZYX), dtype=np.uint8)

    assert not read_liver_mask(image.mask).array_zyx.any()
    with pytest.raises(InputError, match="holds no liver") as error:
        read_labelled(image)
    assert error.value.kind == "empty_mask"


def _saved_as_ras(path):
    """Write the liver flipped in memory with the affine that puts it in its place."""
    affine = CANONICAL_AFFINE_RAS.copy()
    affine[:3, 3] += affine[:3, 1] * (SHAPE_ZYX[1] - 1)
    affine[:3, 1] *= -1
    return write_scan(path, np.flip(_liver(), 1), dtype=np.uint8, affine_ras=affine)


@pytest.mark.parametrize("role", ["mask", "organs"])
def test_labels_that_are_flipped_against_their_image_are_refused(image, tmp_path, role):
    write_scan(image.mask, _liver(), dtype=np.uint8)
    files = {"mask": image.mask, "organs": None, role: _saved_as_ras(tmp_path / "flipped.nii.gz")}

    with pytest.raises(InputError, match=r"flipped.nii.gz: the mask lies on another grid") as error:
        read_labelled(ImageFile(case="c", path=image.path, **files))
    assert error.value.kind == "grid_mismatch"


def test_labels_of_another_shape_are_refused(image):
    write_scan(image.mask, _liver()[1:], dtype=np.uint8)

    with pytest.raises(InputError, match="the mask has shape") as error:
        read_labelled(image)
    assert error.value.kind == "shape_mismatch"


def test_training_map_of_a_pseudo_label_keeps_its_labels(image):
    labels = _liver()
    labels[0], labels[1] = 2, 3
    write_scan(image.mask, labels, dtype=np.uint8)
    pseudo = ImageFile(case="c", path=image.path, mask=image.mask, pseudo=True)

    assert np.array_equal(read_labelled(pseudo).labels_zyx, labels)


def test_label_map_keeps_its_values(tmp_path):
    labels = np.random.default_rng(0).integers(0, 14, SHAPE_ZYX)
    found = read_label_map(_write_float(tmp_path / "organs.nii.gz", labels), largest=13)

    assert found.array_zyx.dtype == np.uint8
    assert np.array_equal(found.array_zyx, labels)
    assert found.repairs == ()


def test_soft_label_map_is_rounded_with_a_note(tmp_path):
    labels = np.random.default_rng(0).integers(0, 14, SHAPE_ZYX)
    found = read_label_map(_write_float(tmp_path / "organs.nii.gz", labels - 2e-4), largest=13)

    assert np.array_equal(found.array_zyx, labels)
    assert [note.split(":")[0] for note in found.repairs] == ["soft_mask"]


@pytest.mark.parametrize("value", [-1, 0.5, 14, 256, np.nan])
def test_image_is_not_taken_for_a_label_map(tmp_path, value):
    labels = np.zeros(SHAPE_ZYX)
    labels[1, 2, 3] = value

    with pytest.raises(InputError) as error:
        read_label_map(_write_float(tmp_path / "organs.nii.gz", labels), largest=13)
    assert error.value.kind == "not_labels"


def test_every_labelled_image_that_cannot_be_used_is_named(image, tmp_path, caplog):
    write_scan(image.mask, _liver()[1:], dtype=np.uint8)
    nonsense = tmp_path / "nonsense.nii.gz"
    nonsense.write_bytes(b"nothing")
    good = write_scan(tmp_path / "good.nii.gz", _liver() * 0.9999, dtype=np.uint8)
    images = [
        ImageFile(case="b", path=image.path, mask=good),
        image,
        ImageFile(case="d", path=image.path, mask=nonsense),
    ]

    with caplog.at_level(logging.INFO), pytest.raises(InputError, match=r"mask_T2\.nii\.gz"):
        check_labelled(images)
    assert "nonsense.nii.gz" in caplog.text
    # Said once: the command prints the error that is raised.
    assert "mask_T2.nii.gz" not in caplog.text


def test_segmentation_of_the_whole_image_is_read_as_a_mask(image, tmp_path):
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", _liver(), like=image.path)

    read = read_labelled(ImageFile(case="c", path=image.path, mask=path))
    assert np.array_equal(read.labels_zyx, _liver())


def test_segmentation_of_a_smaller_extent_is_placed_on_the_image(image, tmp_path):
    part = _liver()[2:6, 3:8, 1:7]
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", part, like=image.path, start_xyz=(1, 3, 2))

    read = read_labelled(ImageFile(case="c", path=image.path, mask=path))
    assert np.array_equal(read.labels_zyx, _liver())
    assert any("T2.seg.nrrd: placed: " in note for note in read.notes)


def test_segmentation_with_flipped_axes_is_placed_exactly(image, tmp_path):
    part = np.flip(_liver()[2:6, 3:8, 1:7], (0, 2))
    grid = read_volume(image.path).geometry
    directions = np.array(grid.direction_xyz) * [-1, 1, -1]
    path = _write_nrrd(
        tmp_path / "T2.seg.nrrd",
        part,
        like=image.path,
        start_xyz=(6, 3, 5),
        directions=directions,
    )

    assert np.array_equal(read_liver_mask(path, grid=grid).array_zyx, _liver())


@pytest.mark.parametrize("start_xyz", [(-1, 3, 2), (6, 3, 2), (1.4, 3, 2)])
def test_segmentation_that_does_not_fit_into_the_image_is_refused(image, tmp_path, start_xyz):
    part = _liver()[2:6, 3:8, 1:7]
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", part, like=image.path, start_xyz=start_xyz)

    with pytest.raises(InputError, match=r"T2\.seg\.nrrd: the segmentation lies on") as error:
        read_labelled(ImageFile(case="c", path=image.path, mask=path))
    assert error.value.kind == "grid_mismatch"


def _fields(*segments):
    """Compose a header: name, value, layer and tags of each segment."""
    found = {}
    for number, (name, value, layer, tags) in enumerate(segments):
        values = {"Name": name, "LabelValue": str(value), "Layer": str(layer), "Tags": tags}
        found |= {f"Segment{number}_{key}": text for key, text in values.items()}
    return found


@pytest.mark.parametrize(
    "segments",
    [
        [("Spleen", 1, 0, ""), ("Liver", 2, 1, "")],
        [("Segment_1", 1, 0, ""), ("Segment_2", 2, 1, LIVER_TAG)],
    ],
)
def test_segment_called_or_coded_liver_is_found_in_its_layer(image, tmp_path, segments):
    layers = np.stack([np.ones(SHAPE_ZYX, np.uint8), _liver() * np.uint8(2)], axis=-1)
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", layers, like=image.path, fields=_fields(*segments))

    assert np.array_equal(read_liver_mask(path).array_zyx, _liver())


def test_segments_without_a_liver_are_refused_and_listed(image, tmp_path):
    fields = _fields(("left", 1, 0, ""), ("right", 2, 0, ""))
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", _liver(), like=image.path, fields=fields)

    with pytest.raises(InputError, match=r"1 'left', 2 'right'") as error:
        read_liver_mask(path)
    assert error.value.kind == "not_a_mask"
    assert np.array_equal(read_liver_mask(path, label=1).array_zyx, _liver())
    with pytest.raises(InputError, match="no voxel has the label 3"):
        read_liver_mask(path, label=3)


@pytest.mark.parametrize(("value", "layer"), [("one", 0), (1, "first")])
def test_a_segment_without_a_number_is_an_unreadable_header(image, tmp_path, value, layer):
    fields = _fields(("Liver", value, layer, ""))
    path = _write_nrrd(tmp_path / "T2.seg.nrrd", _liver(), like=image.path, fields=fields)

    with pytest.raises(InputError, match="instead of a number") as error:
        read_liver_mask(path)
    assert error.value.kind == "unreadable_header"


def test_single_segment_is_the_liver_whatever_its_name(image, tmp_path):
    fields = _fields(("Segment_1", 5, 0, ""))
    path = _write_nrrd(tmp_path / "s.nrrd", _liver() * np.uint8(5), like=image.path, fields=fields)

    assert np.array_equal(read_liver_mask(path).array_zyx, _liver())
