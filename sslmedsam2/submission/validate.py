"""``validate``: check an output folder against the rules of the challenge.

File names are checked first, then every mask against its image.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from sslmedsam2.contract import names
from sslmedsam2.contract.archives import OpenedInput, open_archives
from sslmedsam2.contract.folder_rules import Discovery
from sslmedsam2.contract.outputs import PREDICTION_FOLDER, mask_path, prediction_name
from sslmedsam2.contract.studies import find_studies
from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.files import find_dicom_files
from sslmedsam2.errors import ExitCode, InputError, NoInputError
from sslmedsam2.imaging.formats import NIFTI_EXTENSIONS, image_extension
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.nifti_header import (
    NiftiStruct,
    nifti_struct,
    qform,
    sform,
    voxel_type,
)
from sslmedsam2.imaging.nifti_reading import read_nifti_start
from sslmedsam2.imaging.reading import read_stored
from sslmedsam2.imaging.records import write_record
from sslmedsam2.imaging.volume import Volume, mask_volume_ml
from sslmedsam2.submission.package import guessed_masks

CheckStatus = Literal["PASS", "FAIL", "NOTE"]
_LOG = logging.getLogger(__name__)
_AFFINE_TOLERANCE_MM = 1e-3
"""Largest distance of a corner voxel from its place in the image: float32 rounding only."""

_Fault = tuple[str, str]


@dataclass(frozen=True)
class Check:
    """One line of a validation. ``rule`` is a short stable name."""

    status: CheckStatus
    rule: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Validation:
    """Every line of a validation, in the order in which it was checked."""

    checks: tuple[Check, ...]

    @property
    def failures(self) -> int:
        """The number of lines that say FAIL."""
        return sum(check.status == "FAIL" for check in self.checks)

    @property
    def exit_code(self) -> ExitCode:
        """OK if no line says FAIL."""
        return ExitCode.SOME_CASES_FAILED if self.failures else ExitCode.OK


def validate(*, input_path: Path, output_dir: Path) -> Validation:
    """Check an output folder against the studies it was made from.

    Raises
    ------
    NoInputError
        The input holds no study, or DICOM only, or the output folder does not exist.
    """
    if not output_dir.is_dir():
        raise NoInputError(output_dir, reason="there is no such folder", remedy="Check --output")
    with open_archives(input_path) as opened:
        checks = _checks(opened, output_dir)
        return Validation(
            tuple(
                replace(one, subject=opened.shown(one.subject), detail=opened.shown(one.detail))
                for one in checks
            )
        )


def _checks(opened: OpenedInput, output_dir: Path) -> list[Check]:
    input_path = opened.path
    tree = walk_input(input_path)
    dicom = len(find_dicom_files(tree).files)
    discovery = find_studies(input_path, tree=tree)
    problems = (*opened.problems, *discovery.problems)
    if dicom and not discovery.series:
        raise NoInputError(
            input_path,
            reason="it holds DICOM, with which validate compares no masks",
            remedy="Look at the masks in a viewer, or give images of other formats",
        )
    if not discovery.series:
        causes = [f" ({error.subject} {error.reason})" for error in problems[:1]]
        raise NoInputError(
            input_path,
            reason="it holds no study to compare with" + "".join(causes),
            remedy="Give the folder that the masks were made from",
        )
    masks = {mask_path(output_dir, series): series for series in discovery.series}
    present = {path: series for path, series in masks.items() if path.is_file()}
    guesses = guessed_masks(output_dir)
    checks = [Check("NOTE", "input", error.subject, error.reason) for error in problems]
    if dicom:
        detail = f"masks of its {dicom} DICOM files are not checked"
        checks.append(Check("NOTE", "input", str(input_path), detail))
    checks += _check_names(discovery, masks, folder=output_dir / PREDICTION_FOLDER)
    for path, series in present.items():
        checks += _check_mask(path, series)
    checks += [
        Check("NOTE", "guess", series.name, "a guess, no mask of the network")
        for path, series in present.items()
        if path in guesses
    ]
    return checks


def write_json(validation: Validation, path: Path) -> None:
    """Write the lines and the count of failures; raises OutputError."""
    write_record(path, {"failures": validation.failures, "checks": validation.checks})


def _check_names(
    discovery: Discovery, masks: Mapping[Path, ImageFile], *, folder: Path
) -> list[Check]:
    """Compare the names of the masks with the studies of the input.

    Every case with GED4 needs its GED4 mask; every image outside the challenge's layout needs
    its mask; other sequences are optional. Below ``LiSeg_pred`` nothing else may lie.
    """
    in_cases = {one.path.parent for one in masks.values() if one.sequence is not None}
    checks = [
        _presence(
            one,
            is_there=path.is_file(),
            is_optional=one.sequence is None and one.path.parent in in_cases,
        )
        for path, one in masks.items()
    ]
    cases = {one.case for one in discovery.series if one.sequence}
    if cases or folder.exists():
        checks += _check_folder(folder, expected=masks.keys(), cases=cases)
    return checks


def _presence(series: ImageFile, *, is_there: bool, is_optional: bool) -> Check:
    subject = series.name
    if is_there:
        return Check("PASS", "present", subject, "the mask is there")
    if not is_optional and series.sequence in (names.REQUIRED_SEQUENCE, None):
        return Check("FAIL", "present", subject, "the required mask is missing")
    return Check("NOTE", "present", subject, "no mask (optional)")


def _check_folder(
    folder: Path, *, expected: Collection[Path], cases: Collection[str]
) -> list[Check]:
    """Check that the prediction folder exists and holds the expected masks only."""
    if not folder.is_dir():
        return [Check("FAIL", "folder", PREDICTION_FOLDER, "the output has no such folder")]
    found = sorted(folder.rglob("*"))
    parents = {parent for path in expected for parent in path.parents}
    wrong = [
        Check("FAIL", rule, str(path.relative_to(folder)), detail)
        for path in found
        if path not in expected and not (path in parents and path.is_dir() and any(path.iterdir()))
        for rule, detail in _faults(path, folder=folder, cases=cases)
    ]
    if wrong:
        return wrong
    return [Check("PASS", "names", PREDICTION_FOLDER, "flat by case, nothing but expected masks")]


def _faults(path: Path, *, folder: Path, cases: Collection[str]) -> Iterator[tuple[str, str]]:
    """Return what is wrong with an entry that was not expected.

    A folder that holds anything is not faulted itself unless it is a vendor level: its content
    is.
    """
    parts = path.relative_to(folder).parts
    if path.is_dir():
        if names.vendor_of_folder(path.name):
            yield "vendor_level", "a vendor folder; the prediction folder is flat by case"
        elif not any(path.iterdir()):
            yield "extra", "an empty folder"
    elif names.is_hidden(path.name):
        yield "extra", "a hidden or temporary file"
    elif len(parts) != 2:
        yield "depth", f"lies at depth {len(parts)}; masks are <Case>/<MOD>_pred.nii.gz"
    elif parts[0] not in cases:
        yield "unknown_case", f"the input has no case {parts[0]}"
    else:
        yield "name", _name_fault(path.name)


def _name_fault(name: str) -> str:
    """Return why a file in a case's folder is not one of the case's masks."""
    expected = {prediction_name(sequence): sequence for sequence in names.PREDICTED_SEQUENCES}
    right = next((one for one in expected if one.lower() == name.lower()), None)
    if right is None:
        return f"not one of {', '.join(expected)}"
    if name != right:
        return f"the name has to be spelled {right}"
    return f"the case has no image {expected[right]}"


def _check_mask(path: Path, series: ImageFile) -> list[Check]:
    """Compare one mask with its image: a PASS, or a FAIL for each fault; perhaps a NOTE."""
    subject = series.name
    _LOG.debug("checking %s", path)
    try:
        mask = read_stored(path)
        image = _read_image(series.path)
    except InputError as error:
        return [Check("FAIL", "readable", subject, str(error))]
    faults = [*_value_faults(mask), *_type_faults(mask, image), *_place_faults(mask, image)]
    checks = [Check("FAIL", rule, subject, detail) for rule, detail in faults]
    if not faults:
        shape = " x ".join(map(str, mask.source.native_shape))
        spacing = mask.geometry.spacing_zyx_mm
        volume_ml = mask_volume_ml(mask.array_zyx != 0, spacing_zyx_mm=spacing)
        detail = f"{mask.source.native_dtype.name} {shape}, {volume_ml:.1f} ml, on the image's grid"
        checks.append(Check("PASS", "content", subject, detail))
    if not _is_uint8(mask.source.native_dtype):
        note = f"stored as {mask.source.native_dtype.name}; scored masks were uint8"
        checks.append(Check("NOTE", "dtype", subject, note))
    return checks


@dataclass(frozen=True)
class _Image:
    """The image of a mask; ``header`` is None if it is no NIfTI file."""

    header: NiftiStruct | None
    stored: Volume | None


def _read_image(path: Path) -> _Image:
    """Read an image's header, or where another format has to be compared, the image.

    Raises
    ------
    InputError
        The image cannot be read: nothing can be said of its mask.
    """
    if image_extension(path) in NIFTI_EXTENSIONS:
        return _Image(header=_read_header(path), stored=None)
    return _Image(header=None, stored=read_stored(path))


def _read_header(path: Path) -> NiftiStruct:
    """Read the raw header, even if the voxels after it are damaged."""
    try:
        with path.open("rb") as file:
            return nifti_struct(path, read_nifti_start(path, file)[0])
    except OSError as error:
        raise InputError(
            path,
            kind="unreadable_file",
            reason=f"the image's header cannot be read ({error})",
            remedy="Copy the image again",
        ) from error


def _value_faults(mask: Volume) -> Iterator[_Fault]:
    voxels = mask.array_zyx
    if not np.all((voxels == 0) | (voxels == 1)):
        yield "values", f"values from {voxels.min():g} to {voxels.max():g}, not 0 and 1 only"
    if not voxels.any():
        yield "empty", "the mask is empty"
    for repair in mask.repairs:
        if repair.startswith("misnamed"):
            yield "misnamed", repair.removeprefix("misnamed: ")


def _type_faults(mask: Volume, image: _Image) -> Iterator[_Fault]:
    """Check the voxel type and the scaling of a mask."""
    dtype = mask.source.native_dtype
    allowed = _image_dtype(image)
    if not _is_uint8(dtype) and (dtype.kind, dtype.itemsize) != (allowed.kind, allowed.itemsize):
        yield "dtype", f"stored as {dtype.name}, neither uint8 nor the image's {allowed.name}"
    header = _header_of(mask)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 1 or intercept != 0:
        yield "scaling", f"slope {slope:g} and intercept {intercept:g} instead of 1 and 0"


def _place_faults(mask: Volume, image: _Image) -> Iterator[_Fault]:
    """Compare shape and position of a mask with its image's."""
    if image.header is not None:
        yield from _header_faults(_header_of(mask), image.header)
    elif image.stored is not None:
        ours, theirs = mask.source.native_shape, image.stored.source.native_shape
        if ours != theirs:
            yield "shape", f"{ours}, the image has {theirs}"
        elif not same_grid(mask.geometry, image.stored.geometry):
            yield "affine", "the mask lies elsewhere than the image"


def _header_faults(mask: NiftiStruct, image: NiftiStruct) -> Iterator[_Fault]:
    """Compare two raw headers; an affine only where its code says that it is in force."""
    ours, theirs = _shape(mask), _shape(image)
    if ours != theirs:
        yield "shape", f"{ours}, the image has {theirs}"
        return
    sizes, expected_sizes = mask["pixdim"][1:4], image["pixdim"][1:4]
    # Sizes that no reader could use have to be replaced.
    usable = np.isfinite(expected_sizes).all() and (expected_sizes > 0).all()
    if usable and not np.allclose(sizes, expected_sizes, rtol=1e-5):
        yield "spacing", f"{sizes} mm, the image has {expected_sizes} mm"
    for form in ("qform", "sform"):
        code, expected = int(mask[f"{form}_code"]), int(image[f"{form}_code"])
        if code != expected:
            yield f"{form}_code", f"{code}, the image has {expected}"
        elif code > 0:
            apart_mm = _corners_apart_mm(_affine(mask, form), _affine(image, form), shape=ours)
            if not apart_mm <= _AFFINE_TOLERANCE_MM:
                yield form, f"puts a corner {apart_mm:.3g} mm away from the image's"


def _corners_apart_mm(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], *, shape: tuple[int, ...]
) -> float:
    """Return the largest distance between the places two affines give to a corner voxel."""
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    ends = [(0, length - 1) for length in (*shape, 1, 1)[:3]]
    corners = np.stack([axis.ravel() for axis in (*np.meshgrid(*ends), np.ones((2, 2, 2)))])
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def _affine(header: NiftiStruct, form: str) -> npt.NDArray[np.float64]:
    """Return one of a header's affines; NaN where the header's numbers make none."""
    try:
        return (sform if form == "sform" else qform)(Path(), header)
    except InputError:
        return np.full((3, 4), np.nan)


def _header_of(mask: Volume) -> NiftiStruct:
    """Return a mask's raw header; masks are always NIfTI files (`mask_path` sees to that)."""
    return nifti_struct(mask.source.path, mask.source.nifti_header or b"")


def _shape(header: NiftiStruct) -> tuple[int, ...]:
    return tuple(int(length) for length in header["dim"][1 : 1 + int(header["dim"][0])])


def _image_dtype(image: _Image) -> np.dtype:
    if image.stored is not None:
        return image.stored.source.native_dtype
    try:
        return np.dtype("u1") if image.header is None else voxel_type(Path(), image.header)
    except InputError:
        return np.dtype("u1")


def _is_uint8(dtype: np.dtype) -> bool:
    return (dtype.kind, dtype.itemsize) == ("u", 1)
