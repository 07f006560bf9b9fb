"""DICOM files of the kinds that broke other readers: refused in one line, in bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import edit, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from sslmedsam2.dicom import decoding, headers
from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.dicom.model import Frame
from sslmedsam2.dicom.reading import read_dicom
from sslmedsam2.dicom.sequences import exclusion_of
from sslmedsam2.dicom.volumes import make_volume
from sslmedsam2.errors import InputError

ARRAY = np.random.default_rng(0).integers(1, 900, (7, 16, 12)).astype(np.int16)
EMPTY_ITEM = b"\xfe\xff\x00\xe0" + bytes(4)
END_OF_ITEM = b"\xfe\xff\x0d\xe0" + bytes(4)
END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0" + bytes(4)
UNDEFINED = b"\xff\xff\xff\xff"
SEQUENCE = b"\x40\x00\x30\xa7SQ\0\0"
"""ContentSequence in explicit little endian, without its length."""


def _sound(folder: Path) -> list[Path]:
    return write_series(folder, ARRAY)


def _content(path: Path) -> tuple[bytes, bytes]:
    """Split a file into meta information and data set."""
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, force=False)
        pydicom.filereader._read_file_meta_info(file)
        position = file.tell()
        file.seek(0)
        return file.read(position), file.read()


def _refused(path: Path, *, most_bytes: int = 64 * 2**20, most_seconds: float = 4) -> None:
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read_frames(path, name="one file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.kind == "corrupt_dicom"
    assert "\n" not in str(caught.value)
    assert peak < most_bytes
    assert time.process_time() - started < most_seconds


def _frames(paths: list[Path]) -> list[Frame]:
    return [frame for path in paths for frame in read_frames(path, name="x")]


def _pixels_refused(paths: list[Path]) -> None:
    with pytest.raises(InputError) as caught:
        read_dicom(make_volume(_frames(paths), case="c", series="s"))
    assert caught.value.kind == "unreadable_pixels"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [300, 5000])
def test_nested_sequences_end_no_run(tmp_path, depth):
    """pydicom#2330: each level of a sequence takes several frames of Python's stack."""
    path = _sound(tmp_path)[0]
    meta, data = _content(path)
    nested = (SEQUENCE + UNDEFINED + EMPTY_ITEM[:4] + UNDEFINED) * depth
    ends = (END_OF_ITEM + END_OF_SEQUENCE) * depth
    pixels = data.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(meta + data[:pixels] + nested + ends + data[pixels:])
    _refused(path)


def test_a_million_items_of_a_sequence_take_no_memory(tmp_path):
    """A wide sequence: 8 bytes in the file become an object of more than 1000 (CWE-789)."""
    path = _sound(tmp_path)[0]
    meta, data = _content(path)
    pixels = data.index(b"\xe0\x7f\x10\x00")
    wide = SEQUENCE + UNDEFINED + EMPTY_ITEM * 10**6 + END_OF_SEQUENCE
    path.write_bytes(meta + data[:pixels] + wide + data[pixels:])
    _refused(path)


def _deflated(path: Path, tail: bytes = b"") -> None:
    edit(path, Manufacturer="Maker")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    path.write_bytes(stream.getvalue())
    if tail:
        meta, data = _content(path)
        packer = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
        inflated = zlib.decompress(data, -zlib.MAX_WBITS)
        packed = [packer.compress(inflated), *(packer.compress(tail) for _ in range(100))]
        path.write_bytes(meta + b"".join([*packed, packer.flush()]))


def test_a_deflated_bomb_is_not_inflated_as_a_whole(tmp_path, monkeypatch):
    """The deflated transfer syntax has no limit in pydicom (CWE-409, as CVE-2026-5438)."""
    assert headers._MOST_INFLATED_BYTES <= 2**28
    monkeypatch.setattr(headers, "_MOST_INFLATED_BYTES", 2**22)
    path = _sound(tmp_path)[0]
    _deflated(path, tail=bytes(2**20))
    assert path.stat().st_size < 2**20
    _refused(path, most_bytes=2**24)


def test_a_deflated_series_is_read(tmp_path):
    paths = _sound(tmp_path)
    for path in paths:
        _deflated(path)
    found = read_dicom(make_volume(_frames(paths), case="c", series="s"))
    assert np.array_equal(found.array_zyx, ARRAY)


def test_an_unfinished_deflated_data_set_is_refused(tmp_path):
    path = _sound(tmp_path)[0]
    _deflated(path)
    path.write_bytes(path.read_bytes()[:-30])
    _refused(path)


def test_two_billion_frames_are_refused(tmp_path):
    """CWE-789: a number of frames that only the header has."""
    path = _sound(tmp_path)[0]
    edit(path, NumberOfFrames=2**31 - 1)
    _refused(path)


def test_meta_information_longer_than_the_file_is_refused(tmp_path):
    """CVE-2026-5437: Orthanc read beyond the end of the meta information."""
    path = _sound(tmp_path)[0]
    content = bytearray(path.read_bytes())
    place = content.index(b"\x02\x00\x10\x00UI")
    content[place + 6 : place + 8] = b"\xfe\xff"
    path.write_bytes(bytes(content))
    _refused(path)


def test_dimensions_that_overflow_are_refused_as_truncated(tmp_path):
    """CVE-2026-5442 and 5443: 32-bit products of rows and columns wrapped in Orthanc."""
    paths = _sound(tmp_path)
    for path in paths:
        edit(path, Rows=65535, Columns=65535)
    with pytest.raises(InputError) as caught:
        make_volume(_frames(paths), case="c", series="s")
    assert caught.value.kind == "truncated_dicom"


def test_dimensions_of_32_bits_are_refused(tmp_path):
    """CVE-2026-5442: rows and columns as UL in place of US."""
    paths = _sound(tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        del dataset.Rows, dataset.Columns
        dataset.add_new(0x00280010, "UL", 2**31)
        dataset.add_new(0x00280011, "UL", 2**31)
        dataset.save_as(path)
    with pytest.raises(InputError) as caught:
        make_volume(_frames(paths), case="c", series="s")
    assert caught.value.kind == "truncated_dicom"


def test_a_palette_is_no_intensity(tmp_path):
    """CVE-2026-5443 and 5445: palettes; the pixels are indices, so the image is left out."""
    path = _sound(tmp_path)[0]
    edit(path, PhotometricInterpretation="PALETTE COLOR")
    [frame] = _frames([path])
    assert exclusion_of(frame) == "a colour image"


def test_private_philips_compression_is_refused(tmp_path):
    """CVE-2026-5441: Orthanc read beyond the end of Philips' private compression."""
    paths = _sound(tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x07A10010, "LO", "ELSCINT1")
        dataset.add_new(0x07A11011, "CS", "PMSCT_RLE1")
        dataset.add_new(0x07A1100A, "OB", dataset.PixelData[:50])
        del dataset.PixelData
        dataset.save_as(path)
    with pytest.raises(InputError) as caught:
        make_volume(_frames(paths), case="c", series="s")
    assert caught.value.kind == "truncated_dicom"


def _encapsulated(folder: Path, syntax: str, content: bytes) -> list[Path]:
    paths = _sound(folder)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([content])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path, enforce_file_format=True)
    return paths


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless]
)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff\xd8\xff\xe0" + b"\xff" * 400, id="start_of_jpeg"),
        # CVE-2026-5444: an image of another format within a DICOM file.
        pytest.param(b"P7\nWIDTH 65536\nHEIGHT 65536\nDEPTH 4\nENDHDR\n" + bytes(90), id="pam"),
        pytest.param(b"\x01\0\0\0\x40\0\0\0" + bytes(56) + b"\x81\0" * 90, id="rle"),
    ],
)
def test_damaged_compressed_pixels_are_refused(tmp_path, syntax, content):
    """CVE-2026-5441 to 5445: what decoders of compressed pixels were made to do."""
    _pixels_refused(_encapsulated(tmp_path, syntax, content))


@pytest.fixture
def compressed(tmp_path):
    """A sound compressed series (RLE), and the decoder ended afterwards."""
    paths = _sound(tmp_path / "compressed")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path, enforce_file_format=True)
    yield paths
    decoding._DECODER.stop()


def _read(paths: list[Path]) -> np.ndarray:
    return read_dicom(make_volume(_frames(paths), case="c", series="s")).array_zyx


ANSWER = """
import os, time
answer = b'{"shape": [1, 99999, 99999], "dtype": "<f8", "is_rescaled": 0}'
os.write(1, bytes([len(answer), 0, 0, 0]) + answer)
time.sleep(60)
"""
FAILING_DECODERS = {
    "segmentation fault": "import os; os.kill(os.getpid(), 11)",
    "garbage": "import sys; sys.stdin.buffer.read(4); print('x' * 99)",
    "no shape": ANSWER.replace("99999, 99999", ""),
    "too large": ANSWER,
    "hangs": "import time; time.sleep(60)",
}


def test_a_decoder_that_fails_costs_one_series(compressed, monkeypatch):
    """Kinds of crashes of GDCM, OpenJPEG and libjpeg: the next series is read by a new decoder."""
    decoding._DECODER.stop()
    start, failing = decoding._start, list(FAILING_DECODERS.values())

    def replaced() -> subprocess.Popen[bytes]:
        if not failing:
            return start()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-S", "-c", failing.pop(0)], **pipes)

    monkeypatch.setattr(decoding, "_start", replaced)
    monkeypatch.setattr(decoding, "SECONDS_FOR_A_FILE", 3.0)
    for begun, kind in enumerate(FAILING_DECODERS, 1):
        _pixels_refused(compressed)
        assert len(failing) == len(FAILING_DECODERS) - begun, kind
    monkeypatch.setattr(decoding, "SECONDS_FOR_A_FILE", 120.0)

    assert np.array_equal(_read(compressed), ARRAY)


def test_one_decoder_with_limits_serves_all_files_and_is_replaced_when_it_was_killed(compressed):
    decoding._DECODER.stop()
    assert np.array_equal(_read(compressed), ARRAY)
    first = decoding._DECODER._process
    assert first is not None
    limits = Path(f"/proc/{first.pid}/limits")
    if limits.is_file():
        assert f"Max address space         {decoding.MEMORY_BYTES}" in limits.read_text()
        assert "Max file size             0" in limits.read_text()
    assert np.array_equal(_read(compressed), ARRAY)
    assert decoding._DECODER._process is first

    first.kill()
    first.wait()

    assert np.array_equal(_read(compressed), ARRAY)
    assert decoding._DECODER._process is not first


def test_uncompressed_pixels_start_no_decoder(tmp_path):
    decoding._DECODER.stop()
    assert np.array_equal(_read(_sound(tmp_path)), ARRAY)
    assert decoding._DECODER._process is None


def test_the_decoder_ends_with_its_parent(compressed):
    program = (
        "import sys, pathlib; from sslmedsam2.dicom import decoding;"
        "decoding.decode(pathlib.Path(sys.argv[1])); print(decoding._DECODER._process.pid);"
        "sys.stdout.flush(); import os; os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(compressed[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the decoder is still there")
