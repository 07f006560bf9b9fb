"""Files of the kinds that broke other readers of images.

``DEFECTS`` is the table: the public source of the defect, what to write, and the kind of error that
the file is refused with; None where it is to be read, as the noise that it holds.
"""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from bad_inputs import nifti_bytes, noise

METAIO = "Kitware/MetaIO#150 (ITK#6853), finding"
VOXELS = noise().tobytes(order="F")


@dataclass(frozen=True)
class Defect:
    source: str
    write: Callable[[Path], Path]
    kind: str | None


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _meta(
    fields: str = "", *, data: bytes = VOXELS, data_file: str = "LOCAL", **changes: str
) -> Callable[[Path], Path]:
    values = {"NDims": "3", "DimSize": "12 10 6", "ElementType": "MET_SHORT"} | changes
    lines = [f"{key} = {value}" for key, value in values.items()]
    header = "\n".join(["ObjectType = Image", *lines, fields, f"ElementDataFile = {data_file}\n"])
    name = "a.mha" if data_file == "LOCAL" else "a.mhd"
    return _file(name, lambda: header.encode() + data)


def _nrrd(
    fields: str = "", *, data: bytes = VOXELS, name: str = "a.nrrd", **changes: str
) -> Callable[[Path], Path]:
    defaults = {"type": "short", "dimension": "3", "sizes": "12 10 6"}
    values = defaults | {"endian": "little", "encoding": "raw"} | changes
    lines = [f"{key}: {value}" for key, value in values.items()]
    header = "\n".join(["NRRD0004", *lines, *filter(None, [fields])])
    return _file(name, lambda: header.encode() + b"\n\n" + data)


def _nifti(*, length: int | None = None, compressed: bool = False, **fields: object) -> bytes:
    content = nifti_bytes(**fields)[:length]
    return gzip.compress(content) if compressed else content


def _beside(
    write: Callable[[Path], Path], make: Callable[[Path], object]
) -> Callable[[Path], Path]:
    """Write a file in a folder ``in``, and make something that it names, there or above."""

    def written(folder: Path) -> Path:
        (folder / "in").mkdir()
        (folder / "above.raw").write_bytes(VOXELS)
        make(folder / "in")
        return write(folder / "in")

    return written


def _absolute(write: Callable[[str], Callable[[Path], Path]]) -> Callable[[Path], Path]:
    """Name a sound data file by its absolute path."""

    def written(folder: Path) -> Path:
        (folder / "a.raw").write_bytes(VOXELS)
        return write(str(folder / "a.raw"))(folder)

    return written


def _link_out(folder: Path) -> None:
    (folder / "a.raw").symlink_to(folder.parent / "above.raw")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "a.raw")


def _nothing(folder: Path) -> None:
    pass


def _bomb(content: bytes, *, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Compress content and 64 MB of zeros behind it."""
    packer = zlib.compressobj(level=1, wbits=wbits)
    zeros = bytes(2**20)
    parts = [packer.compress(content), *(packer.compress(zeros) for _ in range(64))]
    return b"".join([*parts, packer.flush()])


def _gzip_bomb(content: bytes) -> bytes:
    return _bomb(content, wbits=16 + zlib.MAX_WBITS)


def _nifti2(**fields: object) -> bytes:
    return _nifti(header_class=nib.Nifti2Header, **fields)


DEFECTS = {
    # MetaImage.
    "metaio_word_longer_than_80_characters": Defect(
        f"{METAIO} 1", _meta(data_file=f"LIST {'A' * 5000}"), "unreadable_header"
    ),
    "metaio_pattern_of_many_words": Defect(
        f"{METAIO} 2", _meta(data_file=f"{'long ' * 900}a%03d.raw 1 6 1"), "unreadable_header"
    ),
    "metaio_more_values_than_4096": Defect(
        f"{METAIO} 3", _meta(NDims="5000", DimSize="2 " * 5000), "unreadable_header"
    ),
    "metaio_negative_number_of_axes": Defect(f"{METAIO} 4", _meta(NDims="-1"), "unreadable_header"),
    "metaio_no_axes": Defect(f"{METAIO} 4", _meta(NDims="0", DimSize=""), "unreadable_header"),
    "metaio_point_list_of_another_type": Defect(
        f"{METAIO} 5",
        _file(
            "a.mha",
            lambda: (
                b"ObjectType = Line\nNDims = 3\nElementType = MET_CHAR\nNPoints = 9\nPoints =\n"
            ),
        ),
        "unreadable_header",
    ),
    "metaio_matrix_of_length_squared": Defect(
        f"{METAIO} 6",
        _meta(f"TransformMatrix = {'1 ' * 10_000}", NDims="100", DimSize="2 " * 100),
        "unreadable_header",
    ),
    "metaio_matrix_of_another_size": Defect(
        f"{METAIO} 6", _meta("TransformMatrix = 1 0 0 1"), "unreadable_header"
    ),
    "metaio_data_file_without_a_word": Defect(
        f"{METAIO} 9", _meta(data_file=" "), "unreadable_header"
    ),
    "metaio_100_bytes_ask_for_17_gigabytes": Defect(
        f"{METAIO} 10", _meta(DimSize="2048 2048 1024", ElementType="MET_INT"), "too_large"
    ),
    "metaio_100_bytes_ask_for_2_gigabytes": Defect(
        f"{METAIO} 10", _meta(DimSize="512 512 1024", ElementType="MET_DOUBLE"), "truncated_data"
    ),
    "metaio_product_of_lengths_wraps": Defect(
        f"{METAIO} 10", _meta(DimSize="4294967296 4294967296 4294967296"), "too_large"
    ),
    "metaio_length_of_400_digits": Defect(
        "CVE-2020-10735 (int of very many digits in Python)",
        _meta(DimSize=f"12 10 {'9' * 400}"),
        "unreadable_header",
    ),
    "metaio_negative_length": Defect(f"{METAIO} 4", _meta(DimSize="-12 -10 6"), "zero_size"),
    "metaio_list_of_dimension_minus_1": Defect(
        "Kitware/MetaIO#141", _meta(data_file="LIST -1\na.raw"), "unreadable_header"
    ),
    "metaio_step_of_0_in_a_pattern": Defect(
        f"{METAIO} 4", _meta(data_file="a%03d.raw 1 1 0"), "unreadable_header"
    ),
    "metaio_pattern_of_two_billion_files": Defect(
        "Kitware/MetaIO#150, the % branch of the read path",
        _meta(data_file="a%03d.raw 0 2147483647 1"),
        "unreadable_header",
    ),
    "metaio_pattern_of_two_gigabytes_of_digits": Defect(
        "Kitware/MetaIO#150, the % branch of the read path; CWE-134",
        _meta(data_file="a%02147483646d.raw 1 6 1"),
        "unreadable_header",
    ),
    "metaio_format_string_as_data_file": Defect(
        "Kitware/MetaIO#114, CWE-134", _meta(data_file="%s%s%n"), "unreadable_header"
    ),
    "metaio_compressed_stream_ends_early": Defect(
        "Kitware/MetaIO#142 (ITK#6575, item B66)",
        _meta("CompressedData = True", data=zlib.compress(VOXELS)[:-40]),
        "truncated_data",
    ),
    "metaio_compressed_stream_is_damaged": Defect(
        "Kitware/MetaIO#142 (ITK#6575, item B66)",
        _meta("CompressedData = True", data=b"x\x9c" + bytes(range(200))),
        "corrupt_data",
    ),
    "metaio_negative_compressed_size": Defect(
        "Kitware/MetaIO#30",
        _meta("CompressedData = True\nCompressedDataSize = -1", data=zlib.compress(VOXELS)),
        None,
    ),
    "metaio_zlib_bomb_behind_the_voxels": Defect(
        "CWE-409", _meta("CompressedData = True", data=_bomb(VOXELS)), None
    ),
    "metaio_header_without_end": Defect(
        "CWE-400", _file("a.mha", lambda: b"NDims = 3\n" + b"A" * 3 * 2**20), "unreadable_header"
    ),
    "metaio_header_size_beyond_the_file": Defect(
        "CWE-125", _meta("HeaderSize = 999999999999"), "truncated_data"
    ),
    "metaio_negative_header_size": Defect("CWE-125", _meta("HeaderSize = -7"), "unreadable_header"),
    # Data files elsewhere.
    "metaio_absolute_data_file": Defect(
        "CWE-36", _absolute(lambda path: _meta(data_file=path)), "data_file_elsewhere"
    ),
    "metaio_data_file_above": Defect(
        "CWE-23", _beside(_meta(data_file="../above.raw"), _nothing), "data_file_elsewhere"
    ),
    "metaio_data_file_in_and_out": Defect(
        "CWE-23", _beside(_meta(data_file="x/../../above.raw"), _nothing), "data_file_elsewhere"
    ),
    "metaio_data_file_linked_out": Defect(
        "CWE-59", _beside(_meta(data_file="a.raw"), _link_out), "data_file_elsewhere"
    ),
    "metaio_data_file_is_a_pipe": Defect(
        "CWE-400", _beside(_meta(data_file="a.raw"), _fifo), "missing_data_file"
    ),
    "metaio_data_file_is_its_folder": Defect("CWE-23", _meta(data_file="."), "data_file_elsewhere"),
    "nrrd_absolute_data_file": Defect(
        "CWE-36",
        _absolute(lambda path: _nrrd(f"data file: {path}", name="a.nhdr")),
        "data_file_elsewhere",
    ),
    "nrrd_data_file_above": Defect(
        "CWE-23",
        _beside(_nrrd("data file: ../above.raw", name="a.nhdr"), _nothing),
        "data_file_elsewhere",
    ),
    "nrrd_data_file_linked_out": Defect(
        "CWE-59",
        _beside(_nrrd("data file: a.raw", name="a.nhdr"), _link_out),
        "data_file_elsewhere",
    ),
    "nrrd_data_file_is_standard_input": Defect(
        "NrrdIO, formatNRRD.c: '-' is standard input",
        _nrrd("data file: -", name="a.nhdr"),
        "missing_data_file",
    ),
    # NRRD.
    "nrrd_17_sizes_for_16_axes": Defect(
        "ITK#6575, item B67", _nrrd(dimension="16", sizes="2 " * 17), "unreadable_header"
    ),
    "nrrd_more_sizes_than_axes": Defect(
        "ITK#6575, item B67", _nrrd(sizes="12 10 6 1"), "unreadable_header"
    ),
    "nrrd_4_billion_dimensions": Defect(
        "CWE-789", _nrrd("space dimension: 4294967295"), "unreadable_header"
    ),
    "nrrd_product_of_sizes_wraps": Defect(
        "CWE-190", _nrrd(sizes="4294967296 4294967296 4294967297"), "too_large"
    ),
    "nrrd_negative_sizes": Defect("CWE-190", _nrrd(sizes="-12 -10 6"), "zero_size"),
    "nrrd_100_bytes_ask_for_gigabytes": Defect(
        "CWE-789", _nrrd(sizes="512 512 1024", type="double"), "truncated_data"
    ),
    "nrrd_channels_ask_for_gigabytes": Defect(
        "CWE-789",
        _nrrd("kinds: list domain domain domain", dimension="4", sizes="99999999 12 10 6"),
        "multi_channel",
    ),
    "nrrd_block_type": Defect(
        "CWE-789", _nrrd("block size: 18446744073709551615", type="block"), "unreadable_header"
    ),
    "nrrd_list_of_data_files": Defect(
        "CWE-22", _nrrd("data file: LIST", name="a.nhdr"), "unreadable_header"
    ),
    "nrrd_format_string_as_data_file": Defect(
        "CWE-134", _nrrd("data file: %s%n 1 6 1", name="a.nhdr"), "unreadable_header"
    ),
    "nrrd_skips_a_million_million_lines": Defect(
        "CWE-834", _nrrd("line skip: 1000000000000"), "unreadable_header"
    ),
    "nrrd_skips_beyond_the_file": Defect("CWE-125", _nrrd("byte skip: 9999999"), "truncated_data"),
    "nrrd_negative_skip": Defect("CWE-125", _nrrd("byte skip: -2"), "unreadable_header"),
    "nrrd_gzip_bomb_behind_the_voxels": Defect(
        "CWE-409", _nrrd(encoding="gzip", data=_gzip_bomb(VOXELS)), None
    ),
    "nrrd_gzip_bomb_before_the_voxels": Defect(
        "CWE-409",
        _nrrd("byte skip: 9999999999", encoding="gzip", data=_gzip_bomb(b"")),
        "unreadable_header",
    ),
    "nrrd_bzip2_bomb_behind_the_voxels": Defect(
        "CWE-409", _nrrd(encoding="bzip2", data=bz2.compress(VOXELS + bytes(2**26))), None
    ),
    "nrrd_100_bytes_of_bzip2_ask_for_gigabytes": Defect(
        "CWE-789",
        _nrrd(sizes="512 512 1024", encoding="bzip2", data=bz2.compress(VOXELS)),
        "truncated_data",
    ),
    "nrrd_damaged_bzip2": Defect(
        "CWE-409", _nrrd(encoding="bzip2", data=b"BZh9" + VOXELS), "corrupt_data"
    ),
    "nrrd_vector_without_an_end": Defect(
        "CWE-125", _nrrd("space: RAS\nspace directions: (1,0,0) (0,1"), "unreadable_header"
    ),
    "nrrd_too_many_coefficients": Defect(
        "CWE-121",
        _nrrd(f"space: RAS\nspace directions: ({'1,' * 999}1) (0,1,0) (0,0,1)"),
        "unreadable_header",
    ),
    # NIfTI.
    "nifti_377_bytes_ask_for_18_gigabytes": Defect(
        "NIFTI-Imaging/nifti_clib#196, item 1",
        _file("a.nii", lambda: _nifti(length=377, dim__1=32767, dim__2=32767, dim__3=9)),
        "too_large",
    ),
    "nifti_377_bytes_ask_for_a_gigabyte": Defect(
        "NIFTI-Imaging/nifti_clib#196, item 1",
        _file("a.nii", lambda: _nifti(length=377, dim__1=512, dim__2=512, dim__3=1000)),
        "truncated_data",
    ),
    "nifti_offset_that_is_no_number": Defect(
        "NIFTI-Imaging/nifti_clib#196, item 2",
        _file("a.nii", lambda: _nifti(vox_offset=np.nan)),
        "unreadable_header",
    ),
    "nifti_infinite_offset": Defect(
        "NIFTI-Imaging/nifti_clib#196, item 2",
        _file("a.nii", lambda: _nifti(vox_offset=np.inf)),
        "unreadable_header",
    ),
    "nifti2_of_200_axes": Defect(
        "NIFTI-Imaging/nifti_clib#195 and #197",
        _file("a.nii", lambda: _nifti2(dim__0=200)),
        "unreadable_header",
    ),
    "nifti2_of_minus_1_axes": Defect(
        "NIFTI-Imaging/nifti_clib#195 and #197",
        _file("a.nii", lambda: _nifti2(dim__0=-1)),
        "unreadable_header",
    ),
    "nifti2_product_of_lengths_wraps": Defect(
        "CWE-190",
        _file("a.nii", lambda: _nifti2(dim__1=2**32, dim__2=2**32, dim__3=2**32)),
        "too_large",
    ),
    "nifti_gzip_bomb_behind_the_voxels": Defect(
        "CVE-2026-5438 (a gzip bomb), python-pillow/Pillow#9475",
        _file("a.nii.gz", lambda: _gzip_bomb(nifti_bytes())),
        None,
    ),
    "nifti_gzip_bomb_before_the_voxels": Defect(
        "CVE-2026-5438 (a gzip bomb)",
        _file("a.nii.gz", lambda: _gzip_bomb(nifti_bytes(vox_offset=2.0**28))),
        "unreadable_header",
    ),
    "nifti_gzip_name_without_an_end": Defect(
        "python/cpython#149945",
        _file("a.nii.gz", lambda: b"\x1f\x8b\x08\x18" + bytes(6) + b"A" * 2**18),
        "truncated_data",
    ),
    "nifti_gzip_length_that_lies": Defect(
        "CVE-2026-5438 (a size trusted)",
        _file(
            "a.nii.gz",
            lambda: gzip.compress(nifti_bytes())[:-4] + struct.pack("<I", 0xFFFFFFF0),
        ),
        "corrupt_data",
    ),
    # FreeSurfer and Analyze.
    "mgh_300_bytes_ask_for_gigabytes": Defect(
        "CWE-789",
        _file("a.mgh", lambda: struct.pack(">7i", 1, 512, 512, 1024, 1, 3, 0) + bytes(256)),
        "truncated_data",
    ),
    "mgz_300_bytes_ask_for_gigabytes": Defect(
        "CWE-789",
        _file(
            "a.mgz",
            lambda: gzip.compress(struct.pack(">7i", 1, 512, 512, 1024, 1, 3, 0) + bytes(256)),
        ),
        "truncated_data",
    ),
    "mgh_product_of_lengths_wraps": Defect(
        "CWE-190",
        _file("a.mgh", lambda: struct.pack(">7i", 1, *[2**31 - 1] * 3, 1, 3, 0) + bytes(256)),
        "too_large",
    ),
    "analyze_pair_without_voxels": Defect(
        "GreycLab/CImg#403",
        _file("a.hdr", lambda: _nifti(length=348, magic=b"ni1", dim__1=512, dim__2=512)),
        "missing_data_file",
    ),
}
