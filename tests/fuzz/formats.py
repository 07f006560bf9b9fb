"""What is mutated: small files of our own for each reader, how they are damaged and read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
from bad_inputs import AFFINE_RAS, nifti_bytes, noise

from sslmedsam2.errors import InputError, NoInputError, SslMedSam2Error
from sslmedsam2.imaging.geometry import SPACING_RANGE_MM
from sslmedsam2.imaging.reading import read_grid, read_mask, read_stored, read_volume
from sslmedsam2.imaging.volume import MaskVolume, Volume
from sslmedsam2.imaging.writing import write_mask

from .mutation import damaged, damaged_json, with_fields_changed, with_lines_changed

Files = dict[str, bytes]


class BrokenPromiseError(Exception):
    """A reader accepted an input and gave something else than it promises."""


@dataclass(frozen=True)
class Format:
    """A kind of input: sound seeds, how one is damaged, and what reads the folder it is in.

    ``expected`` are the exceptions that the reader may raise, ``megabytes`` what it may take.
    """

    name: str
    seeds: Callable[[], tuple[Files, ...]]
    mutate: Callable[[Files, Random], Files]
    read: Callable[[Path], object]
    expected: tuple[type[BaseException], ...] = (SslMedSam2Error,)
    megabytes: int = 512


def check_volume(volume: Volume) -> None:
    """Compare a volume with what ``read_volume`` promises; write and read a mask for it."""
    voxels, geometry = volume.array_zyx, volume.geometry
    low, high = SPACING_RANGE_MM
    promises = {
        "float32": voxels.dtype == np.float32,
        "the shape of its geometry": voxels.shape == geometry.shape_zyx,
        "the stored shape": voxels.size == np.prod(volume.source.native_shape, dtype=np.int64),
        "finite": bool(np.isfinite(voxels).all()),
        "not constant": voxels.min() < voxels.max(),
        "sizes in mm": all(low * 0.999 <= one <= high * 1.001 for one in geometry.spacing_zyx_mm),
        "a finite origin": bool(np.isfinite(geometry.origin_xyz_mm).all()),
        "perpendicular axes": np.allclose(
            geometry.direction_xyz.T @ geometry.direction_xyz, np.eye(3), atol=1e-6
        ),
    }
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise BrokenPromiseError(", ".join(broken))


def check_mask_of(volume: Volume | MaskVolume, folder: Path) -> None:
    """Write a mask on the grid of what was read; ``write_mask`` reads it back and compares."""
    mask = np.zeros(volume.array_zyx.shape, np.uint8)
    mask[::2] = 1
    try:
        write_mask(mask, like=volume, path=folder / "written.nii.gz")
    except Exception as error:
        raise BrokenPromiseError(f"no mask can be written: {error}") from error


def _read_image(folder: Path) -> None:
    """Read the one image of a folder; write a mask for one of eight, which takes longest."""
    path = min(folder.iterdir())
    try:
        volume = read_volume(path)
    except SslMedSam2Error:
        # What a fallback needs.
        read_grid(path)
        raise
    check_volume(volume)
    if zlib.crc32(path.read_bytes()) % 8 == 0 and volume.array_zyx.size < 100_000:
        read_mask(path)
        check_mask_of(volume, folder)


# NIfTI

_NIFTI1 = nib.Nifti1Header.template_dtype
_NIFTI2 = nib.Nifti2Header.template_dtype


@cache
def _nifti_contents() -> tuple[bytes, ...]:
    plain = nifti_bytes()
    return (
        *(plain, nifti_bytes(endianness=">"), nifti_bytes(header_class=nib.Nifti2Header)),
        *(nifti_bytes(noise().astype(kind)) for kind in (np.uint8, np.float32, np.float64)),
        nifti_bytes(scl_slope=0.5, scl_inter=-10),
        nifti_bytes(noise((12, 10, 6, 1))),
        nifti_bytes(sform_code=0),
        nifti_bytes(qform_code=0, xyzt_units=3),
    )


@cache
def _nifti_seeds() -> tuple[Files, ...]:
    return tuple({f"scan{end}": one} for one in _nifti_contents() for end in (".nii", ".nii.gz"))


def _packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, compresslevel=1, mtime=0)
    return bz2.compress(content) if name.endswith(".bz2") else content


def _mutated_nifti(seed: Files, random: Random) -> Files:
    [(name, content)] = seed.items()
    if random.random() < 0.05:
        name = "scan.nii.bz2"
    kind = random.random()
    if kind < 0.55:
        is_second = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
        dtype = _NIFTI2 if is_second else _NIFTI1
        big = content[:1] == b"\x00"
        content = with_fields_changed(content, dtype.newbyteorder(">" if big else "<"), 0, random)
    if kind > 0.45:
        content = damaged(
            content, random, others=[one for s in _nifti_seeds() for one in s.values()]
        )
    packed = _packed(name, content)
    return {name: damaged(packed, random) if random.random() < 0.15 else packed}


# Formats that nibabel reads: FreeSurfer's, and pairs.


@cache
def _nibabel_seeds() -> tuple[Files, ...]:
    mgh = nib.MGHImage(noise(), AFFINE_RAS)
    analyze = nib.AnalyzeImage(noise(), AFFINE_RAS)
    pair = nib.Nifti1Pair(noise(), AFFINE_RAS)
    return (
        {"scan.mgh": mgh.to_bytes()},
        {"scan.mgz": gzip.compress(mgh.to_bytes(), mtime=0)},
        *(_pair(image) for image in (analyze, pair)),
    )


def _pair(image: Any) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        nib.save(image, Path(folder) / "scan.hdr")
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _mutated_nibabel(seed: Files, random: Random) -> Files:
    files = dict(seed)
    name = random.choice(list(files))
    if name == "scan.hdr" and random.random() < 0.6:
        files[name] = with_fields_changed(files[name], _NIFTI1, 0, random)
    elif name.endswith(".mgz") and random.random() < 0.7:
        files[name] = gzip.compress(damaged(gzip.decompress(files[name]), random), 1, mtime=0)
    else:
        files[name] = damaged(files[name], random)
    return files


# MetaImage and NRRD


def _metaimage(data_file: bytes, compressed: bool, **changes: str) -> bytes:
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False", "CompressedData": str(compressed),
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-90 -80 -60", "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI",
        "ElementSpacing": "1.5 1.5 4", "DimSize": "12 10 6", "ElementType": "MET_SHORT", **changes,
    }  # fmt: skip
    lines = [f"{key} = {value}".encode() for key, value in fields.items()]
    return b"\n".join([*lines, b"ElementDataFile = " + data_file]) + b"\n"


def _voxel_bytes(dtype: str = "<i2") -> bytes:
    return noise().astype(dtype).tobytes(order="F")


@cache
def _metaimage_seeds() -> tuple[Files, ...]:
    raw, packed = _voxel_bytes(), zlib.compress(_voxel_bytes())
    size = {"CompressedDataSize": str(len(packed))}
    msb = {"BinaryDataByteOrderMSB": "True"}
    return (
        {"scan.mha": _metaimage(b"LOCAL", False) + raw},
        {"scan.mha": _metaimage(b"LOCAL", True, **size) + packed},
        {"scan.mha": _metaimage(b"LOCAL", False, **msb) + _voxel_bytes(">i2")},
        {"scan.mha": _metaimage(b"LOCAL", False, ElementType="MET_FLOAT") + _voxel_bytes("<f4")},
        {"scan.mhd": _metaimage(b"scan.raw", False), "scan.raw": raw},
        {"scan.mhd": _metaimage(b"scan.zraw", True), "scan.zraw": packed},
    )


def _nrrd(*extra: str, encoding: str = "raw", kind: str = "short", endian: str = "little") -> bytes:
    lines = (
        *("NRRD0004", "# made for tests", f"type: {kind}", "dimension: 3"),
        *("space: left-posterior-superior", "sizes: 12 10 6"),
        *("space directions: (1.5,0,0) (0,1.5,0) (0,0,4)", "kinds: domain domain domain"),
        *(f"endian: {endian}", f"encoding: {encoding}", "space origin: (-90,-80,-60)", *extra),
    )
    return "\n".join(lines).encode() + b"\n\n"


@cache
def _nrrd_seeds() -> tuple[Files, ...]:
    raw = _voxel_bytes()
    return (
        {"scan.nrrd": _nrrd() + raw},
        {"scan.nrrd": _nrrd(encoding="gzip") + gzip.compress(raw, mtime=0)},
        {"scan.nrrd": _nrrd(endian="big") + _voxel_bytes(">i2")},
        {"scan.nrrd": _nrrd('space units: "mm" "mm" "mm"', kind="float") + _voxel_bytes("<f4")},
        {"scan.nhdr": _nrrd("data file: scan.raw"), "scan.raw": raw},
    )


def _mutated_text_header(separators: tuple[bytes, ...], end: bytes) -> Callable:
    def mutate(seed: Files, random: Random) -> Files:
        files = dict(seed)
        name = min(files)
        content = files[name]
        at = content.index(end) + len(end)
        at = content.index(b"\n", at) + 1 if end != b"\n\n" else at
        head, data = content[:at], content[at:]
        if random.random() < 0.75:
            lines = head.rstrip(b"\n").split(b"\n")
            lines = with_lines_changed(lines, random, separators=separators)
            head = b"\n".join(lines) + (b"\n\n" if end == b"\n\n" else b"\n")
        files[name] = head + data
        if random.random() < 0.3:
            other = random.choice(list(files))
            files[other] = damaged(files[other], random)
        return files

    return mutate


# DICOM


@cache
def _dicom_seeds() -> tuple[Files, ...]:
    from dicom.dicom_samples import write_enhanced, write_series
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    from sslmedsam2.dicom.files import require_dicom

    require_dicom()
    voxels = noise((16, 14, 7)).T
    seeds = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain = write_series(folder / "plain", voxels, dtype=np.uint16)
        seeds.append({path.name: path.read_bytes() for path in plain})
        ct = write_series(
            folder / "ct", voxels, modality="CT", slope=2.0, intercept=-1024.0, study="2"
        )
        seeds.append({path.name: path.read_bytes() for path in ct})
        enhanced = write_enhanced(folder / "enhanced.dcm", {0.0: voxels, 800.0: voxels})
        seeds.append({enhanced.name: enhanced.read_bytes()})
        for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless):
            files = {}
            for path in plain:
                dataset = dcmread(path)
                if syntax == RLELossless:
                    dataset.compress(RLELossless)
                else:
                    dataset.file_meta.TransferSyntaxUID = syntax
                stream = io.BytesIO()
                dataset.save_as(
                    stream, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True
                )
                files[path.name] = stream.getvalue()
            seeds.append(files)
    return tuple(seeds)


@cache
def _elements(content: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return where each element of an explicit little-endian file begins, its value, and ends."""
    from pydicom.filereader import data_element_generator

    stream = io.BytesIO(content)
    stream.seek(132)
    places, start = [], 132
    for element in data_element_generator(stream, False, True):
        value = getattr(element, "value_tell", start)
        places.append((start, value, stream.tell()))
        start = stream.tell()
    return tuple(places)


def _with_element_changed(content: bytes, random: Random) -> bytes:
    """Change the value, length, type or number of an element, or remove or repeat it."""
    try:
        start, value, end = random.choice(_elements(content))
    except Exception:
        return damaged(content, random)
    element = content[start:end]
    kind = random.randrange(8)
    if kind == 0:
        element = b""
    elif kind == 1:
        element *= 2
    elif kind == 2:
        element = damaged(element[: value - start], random) + element[value - start :]
    elif kind == 3:
        other = random.choice((b"UN", b"SQ", b"US", b"DS", b"OB", b"IS", b"UT", b"FD", b"zz"))
        element = element[:4] + other + element[6:]
    elif kind <= 5 and value - start == 8:
        text = random.choice(
            (b"", b"0", b"-1", b"nan", b"1e400", b"1\\2", b"inf\\inf\\inf", b"\\", b"\xff\xfe",
             b"0\\0\\0\\0\\0\\0", b"9" * 60, b"1.2.3", b"T2", b"\x00" * 4, b"A" * 4000, b"\\" * 300)
        )  # fmt: skip
        text += b" " * (len(text) % 2)
        element = element[:6] + len(text).to_bytes(2, "little") + text
    elif kind == 6:
        element = element[:6] + random.randbytes(2) + element[8:]
    else:
        element = element[: value - start] + damaged(element[value - start :], random)
    return content[:start] + element + content[end:]


def _mutated_dicom(seed: Files, random: Random) -> Files:
    files = dict(seed)
    for name in random.sample(list(files), random.choice((1, 1, min(2, len(files)), len(files)))):
        content = files[name]
        changed = random.random() < 0.7
        files[name] = (
            _with_element_changed(content, random) if changed else damaged(content, random)
        )
    return files


def _read_dicom(folder: Path) -> None:
    from sslmedsam2.dicom.reading import dicom_grid, read_dicom
    from sslmedsam2.predict.inputs import find_inputs

    found = find_inputs(folder, sequences=None)
    error: SslMedSam2Error | None = None
    for named in found.dicom.volumes if found.dicom else ():
        dicom_grid(named.volume)
        try:
            check_volume(read_dicom(named.volume))
        except SslMedSam2Error as refusal:
            error = refusal
    if error is not None or not (found.dicom and found.dicom.volumes):
        raise error or NoInputError(folder, reason="no volume", remedy="None")


# JSON, TOML and CSV


@cache
def _report_seeds() -> tuple[Files, ...]:
    from sslmedsam2.imaging.records import record_text
    from sslmedsam2.reporting import run_report as report

    result = report.SeriesResult(
        case="0001-A", vendor="A", sequence="GED4", input_path="0777-A/GED4.nii.gz",
        output_path="LiSeg_pred/0777-A/GED4_pred.nii.gz", status=report.SeriesStatus.OK,
        geometry=report.InputGeometry(
            shape_zyx=(6, 10, 12), spacing_zyx_mm=(4, 1.5, 1.5), origin_xyz_mm=(1, 2, 3),
            direction_xyz=((1, 0, 0), (0, 1, 0), (0, 0, 1)), left_handed=False,
            native_shape=(12, 10, 6), native_dtype="int16",
        ),
        seconds={"read": 0.1}, warnings=("padding: 3 voxels",), liver_volume_ml=1200.5,
        estimated_dice=0.9, estimated_dice_interval=(0.8, 0.95), mask_sha256="0" * 64,
    )  # fmt: skip
    whole = report.start_report(
        options={"mode": "exact"}, device="cpu", backend="openvino", models=()
    )
    whole = whole.with_series(result).with_series(
        report.SeriesResult(
            case="2", vendor=None, sequence="T2", input_path="2.nii", output_path=None,
            status=report.SeriesStatus.FAILED, error="no",
        )
    )  # fmt: skip
    return ({"run_report.json": record_text(whole.ended(exit_code=1)).encode()},)


def _mutated_json_file(seed: Files, random: Random) -> Files:
    name = random.choice([name for name in seed if name.endswith(".json")])
    return {**seed, name: damaged_json(seed[name], random)}


def _read_report(folder: Path) -> None:
    from sslmedsam2.reporting.run_report import load_report
    from sslmedsam2.reporting.volume_table import write_volume_table

    report = load_report(folder / "run_report.json")
    _ = report.counts, report.n_left_out, [result.flags for result in report.series]
    write_volume_table(report, folder / "liver_volumes.csv")


@cache
def _model_files(shipped: Path) -> Files:
    from sslmedsam2.weights.manifest import read_manifest

    [entry, *_] = read_manifest(shipped / "manifest.json").models
    names = [file.path for file in entry.files if file.path.endswith(".json")]
    return {name: (shipped / entry.name / name).read_bytes() for name in names}


@cache
def _manifest_seeds() -> tuple[Files, ...]:
    from sslmedsam2.weights.locate import SHIPPED_DIR

    return ({"manifest.json": (SHIPPED_DIR / "manifest.json").read_bytes()},)


def _read_manifest(folder: Path) -> None:
    from sslmedsam2.weights.manifest import read_manifest

    read_manifest(folder / "manifest.json").entry("liver")


@cache
def _tiny_model() -> Files:
    from tiny_models import bright_tissue_model

    with tempfile.TemporaryDirectory() as scratch:
        return _files_of(bright_tissue_model(Path(scratch) / "model"))


@cache
def _plans_seeds() -> tuple[Files, ...]:
    from sslmedsam2.weights.locate import SHIPPED_DIR

    return _tiny_model(), {**_tiny_model(), **_model_files(SHIPPED_DIR)}


def _read_model(folder: Path) -> None:
    from sslmedsam2.inference.model_folder import load_checkpoint, read_model_spec

    spec = read_model_spec(folder)
    for fold in spec.folds:
        load_checkpoint(spec, fold)


def _read_engine(folder: Path) -> None:
    """Load a network from a model folder and run it on a small volume."""
    from tiny_scans import small_abdomen

    from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

    segmenter = CanonicalSegmenter(read_model_spec(folder), EngineOptions(device="cpu"))
    voxels = small_abdomen(1)[0]
    volume = CanonicalVolume(voxels, (21.0, 8.0, 8.0), Reorientation((0, 1, 2), ()))
    try:
        found = segmenter.segment(volume)
    except Exception:
        # Of one scan; `predict` goes on.
        return
    if found.mask_zyx.shape != voxels.shape or found.mask_zyx.max() > 1:
        raise BrokenPromiseError("the mask is not of the volume's shape, or not of 0 and 1")


_OPCODES = b"(.0123]}tJKMNIRbcquQXh\x8a\x8b\x8e\x93r"


def _mutated_checkpoint(seed: Files, random: Random) -> Files:
    name = next(name for name in seed if name.endswith(".pth"))
    content = seed[name]
    if random.random() < 0.5:
        # Within the pickle, so that the archive around it stays sound.
        start = content.index(b"data.pkl") + len(b"data.pkl")
        end = content.index(b"PK", start)
        part = bytearray(content[start:end])
        for _ in range(random.choice((1, 2, 4))):
            place = random.randrange(len(part))
            part[place] = random.choice(
                (*b"(.0123]}tJKMNIRbcquQXh\x8a\x8b\x8e\x93r", 255, part[place] ^ 1)
            )
        return {**seed, name: content[:start] + bytes(part) + content[end:]}
    return {**seed, name: damaged(content, random)}


@cache
def _table_seeds() -> tuple[Files, ...]:
    table = {"device": "cpu", "sequences": ["T2", "T1"], "mirror": False, "on-failure": "skip"}
    names = {"1.2.3.4": "T2", "t2_haste_tra": "skip", "a/b.nii.gz": "none"}
    toml = b'device = "cpu"\nsequences = ["T2"]\nmirror = false\n[other]\nkey = 1.5\n'
    return (
        {"config.json": json.dumps(table).encode()},
        {"map.json": json.dumps(names).encode()},
        {"config.toml": toml},
        {"map.toml": b'"1.2.3" = "T2"\n"t1 tra" = "skip"\n'},
    )


def _mutated_table(seed: Files, random: Random) -> Files:
    [(name, content)] = seed.items()
    if name.endswith(".json"):
        return {name: damaged_json(content, random)}
    lines = content.rstrip(b"\n").split(b"\n")
    if random.random() < 0.6:
        content = b"\n".join(with_lines_changed(lines, random, separators=(b"=",)))
    else:
        content = damaged(content, random)
    if random.random() < 0.01:
        content += b"\ndeep = " + b"[" * 5000
    return {name: content}


def _read_table(folder: Path) -> None:
    import click

    from sslmedsam2.cli.config import _option_values, load_table
    from sslmedsam2.cli.predict import predict
    from sslmedsam2.contract.sequence_map import parse_sequence_map

    [path] = folder.iterdir()
    table = load_table(path)
    if path.stem == "map":
        parse_sequence_map(table).split("case_T2")
    else:
        _option_values(click.Context(predict, info_name="predict"), table, path=path)


_INFO = (
    b'Case,Vendor,Missing Modality\n0001-A,A,\n0002-B1,Vendor_B1,"T1, DWI_800"\n',
    b"case;vendor;missing_modality\r\n0003-B2;B2;GED4\r\n",
    "Case\tVendor\n0004-C\tC\n".encode("utf-16"),
)


def _mutated_info(seed: Files, random: Random) -> Files:
    content = seed["info.csv"]
    if random.random() < 0.5 and not content.startswith(b"\xff"):
        lines = with_lines_changed(content.split(b"\n"), random, separators=(b",", b";"))
        return {"info.csv": b"\n".join(lines)}
    return {"info.csv": damaged(content, random)}


def _read_info(folder: Path) -> None:
    from sslmedsam2.contract.info_csv import disagreements

    disagreements(folder / "info.csv", ())


# A finished run whose report is damaged


@cache
def _run_folder() -> tuple[tempfile.TemporaryDirectory, Files]:
    """Return a folder with input and model, and the files of a finished run of it."""
    from tiny_models import bright_tissue_model
    from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

    scratch = tempfile.TemporaryDirectory()
    root = Path(scratch.name)
    for seed, case in enumerate(("0001-A", "0002-A")):
        path = root / "in" / case / "GED4.nii.gz"
        write_scan(path, small_abdomen(seed)[0], affine_ras=SMALL_AFFINE_RAS)
    bright_tissue_model(root / "model")
    # In a fork: the threads of a network would be missing in the forks that read.
    child = os.fork()
    if child == 0:
        _predict_again(root / "out")
        os._exit(0)
    os.waitpid(child, 0)
    return scratch, _files_of(root / "out")


def _run_seeds() -> tuple[Files, ...]:
    return (_run_folder()[1],)


def _files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _predict_again(out: Path, root: Path | None = None) -> int | None:
    from sslmedsam2.predict.pipeline import PredictOptions, predict

    root = root or out.parent
    options = PredictOptions(
        input_path=root / "in", output_dir=out, model_dir=root / "model", device="cpu",
        previews=False, resume=True, on_failure="skip",
    )  # fmt: skip
    return predict(options).exit_code


def _read_resumed(folder: Path) -> None:
    """Resume a run: its masks are the same afterwards, whatever its report says."""
    scratch, whole = _run_folder()
    code = _predict_again(folder, Path(scratch.name))
    masks = {name: content for name, content in whole.items() if name.endswith(".nii.gz")}
    now = _files_of(folder)
    if code != 0 or any(now.get(name) != content for name, content in masks.items()):
        raise BrokenPromiseError(f"exit code {code}, {len(now)} files, another mask or none")


def _read_page(folder: Path) -> None:
    """Make the page of a run, with its scans."""
    from sslmedsam2.predict.page import ReportOptions, report

    report(ReportOptions(folder, Path(_run_folder()[0].name) / "in"))


# Archives


@cache
def _zip_seeds() -> tuple[Files, ...]:
    seeds = []
    scan = gzip.compress(nifti_bytes(), mtime=0)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as file:
            file.writestr("0777-A/GED4.nii.gz", scan)
            file.writestr("0777-A/T2.nii", nifti_bytes())
            file.writestr("0777-A/", b"")
            file.writestr("info.csv", _INFO[0])
        seeds.append({"scans.zip": stream.getvalue()})
    return tuple(seeds)


_LOCAL = np.dtype(
    [("sig", "S4"), ("version", "<u2"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u4"),
     ("crc", "<u4"), ("packed", "<u4"), ("size", "<u4"), ("name", "<u2"), ("extra", "<u2")]
)  # fmt: skip
_CENTRAL = np.dtype(
    [("sig", "S4"), ("made", "<u2"), ("version", "<u2"), ("flags", "<u2"), ("method", "<u2"),
     ("time", "<u4"), ("crc", "<u4"), ("packed", "<u4"), ("size", "<u4"), ("name", "<u2"),
     ("extra", "<u2"), ("comment", "<u2"), ("disk", "<u2"), ("internal", "<u2"),
     ("external", "<u4"), ("offset", "<u4")]
)  # fmt: skip
_NAMES = (
    *(b"../outside.nii.gz", b"/tmp/outside.nii", b"C:\\a\\b.nii", b"a\x00b.nii", b"..\\..\\x.nii"),
    *(
        b"con.nii",
        b"0777-A/GED4.nii.gz",
        b"0777-A",
        b".",
        b"",
        b"./a.nii",
        b"a//b.nii",
        b"\xff.nii",
    ),
)


def _mutated_zip(seed: Files, random: Random) -> Files:
    content = seed["scans.zip"]
    kind = random.random()
    if kind < 0.5:
        signature, record = random.choice(((b"PK\x03\x04", _LOCAL), (b"PK\x01\x02", _CENTRAL)))
        places = [at for at in range(len(content) - 4) if content[at : at + 4] == signature]
        content = with_fields_changed(content, record, random.choice(places), random)
    elif kind < 0.65:
        old = random.choice((b"0777-A/GED4.nii.gz", b"0777-A/T2.nii", b"info.csv"))
        new = random.choice(_NAMES)[: len(old)]
        content = content.replace(old, new.ljust(len(old), random.choice((b"a", b"/", b" "))))
    else:
        content = damaged(content, random)
    return {"scans.zip": content}


def _read_zip(folder: Path) -> None:
    from sslmedsam2.contract.archives import open_archives
    from sslmedsam2.contract.studies import find_studies

    with _no_end_of_the_run(), open_archives(folder) as opened:
        for image in find_studies(opened.path).series:
            with contextlib.suppress(InputError):
                read_stored(image.path)
        for path in opened.path.rglob("*"):
            if not path.is_symlink() and not path.resolve().is_relative_to(opened.path.resolve()):
                raise BrokenPromiseError(f"{path} lies elsewhere")


@contextlib.contextmanager
def _no_end_of_the_run() -> Iterator[None]:
    """What is wrong with an archive is listed; an error would end the run with all its scans."""
    try:
        yield
    except SslMedSam2Error as error:
        raise BrokenPromiseError(f"it ends the run: {error}") from error


_ALL = (
    Format("nifti", _nifti_seeds, _mutated_nifti, _read_image),
    Format("nibabel", _nibabel_seeds, _mutated_nibabel, _read_image),
    Format(
        "metaimage",
        _metaimage_seeds,
        _mutated_text_header((b" = ",), b"ElementDataFile"),
        _read_image,
    ),
    Format("nrrd", _nrrd_seeds, _mutated_text_header((b":=", b":"), b"\n\n"), _read_image),
    Format("dicom", _dicom_seeds, _mutated_dicom, _read_dicom),
    Format("report", _report_seeds, _mutated_json_file, _read_report),
    Format(
        "resume", lambda: (_run_folder()[1],), _mutated_json_file, _read_resumed, megabytes=4096
    ),
    Format("page", lambda: (_run_folder()[1],), _mutated_json_file, _read_page),
    Format("manifest", _manifest_seeds, _mutated_json_file, _read_manifest),
    Format("plans", _plans_seeds, _mutated_json_file, _read_model),
    # OpenVINO keeps address space for each new shape of network; real memory does not grow.
    Format("engine", lambda: (_tiny_model(),), _mutated_json_file, _read_engine, megabytes=2048),
    Format("checkpoint", lambda: (_tiny_model(),), _mutated_checkpoint, _read_model),
    Format("table", _table_seeds, _mutated_table, _read_table),
    Format("info", lambda: tuple({"info.csv": one} for one in _INFO), _mutated_info, _read_info),
    Format("zip", _zip_seeds, _mutated_zip, _read_zip),
)
FORMATS = {one.name: one for one in _ALL}
