"""Names: sequences and their aliases, masks, vendors, cases, safe file names.

Matching is on whole names and ignores case; substrings never match.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.formats import IMAGE_EXTENSIONS, image_extension

REQUIRED_SEQUENCE = "GED4"
PREDICTED_SEQUENCES = (REQUIRED_SEQUENCE, "T1", "T2", "DWI_800")
"""The sequences that the challenge scores, in processing order."""
SEQUENCES = (*PREDICTED_SEQUENCES, "GED1", "GED2", "GED3")
VOLUME_SUFFIXES = IMAGE_EXTENSIONS
IN_DISTRIBUTION_VENDORS = ("A", "B1", "B2")

_SEQUENCE_PATTERNS = (
    ("GED", re.compile(r"GED[ _-]?([1-4])", re.IGNORECASE)),
    ("T", re.compile(r"T([12])[ _-]?(?:WI?)?", re.IGNORECASE)),
)
# After DWI only a separator, or a b-value, may follow: "DWIGHT" is a person.
_DWI = re.compile(r"DWI(?:[ _-].*|B?\d.*)?", re.IGNORECASE)
_DWI_800 = re.compile(r"DWI[ _-]?B?[ _-]?800", re.IGNORECASE)
# A small number without the letter counts series; a long one is a date.
_B_VALUE = re.compile(r"DWI[ _-]?(?:B[ _-]?(\d{1,4})|([1-9]\d{2,3}|50|0))(?!\d)", re.IGNORECASE)
_DERIVED = frozenset(
    "adc eadc fa mip minip sub subtraction pdff t1map t2map r2star".split()  # noqa: SIM905
)
PROBABILITY_PREFIX = "probability_"
UNCERTAINTY_PREFIX = "uncertainty_"
_MASK_PREFIX = re.compile(r"(mask|organs|probability|uncertainty)[ _-]", re.IGNORECASE)
# As Slicer (T2.seg.nrrd, T2-label, Segmentation), ITK-SNAP and data sets (T2_gt) name them.
_MASK_SUFFIX = re.compile(
    r"(?:[ ._-](mask|seg|pred|segmentation|labels?|gt|ground[ _-]?truth|roi|manual|annotation))+$",
    re.IGNORECASE,
)
_MASK_ALONE = re.compile(
    r"(?:mask|seg|segmentation|labels?|gt|ground[ _-]?truth|roi|annotation)"
    r"(?:[ _-]\d+)?(?:[._-](?:seg|labels?))?",
    re.IGNORECASE,
)
# "Vendors" is a plural, not vendor S.
_VENDOR_FOLDER = re.compile(r"vendor(?!s$)[ _-]?([A-Z]\d?)", re.IGNORECASE)
_CASE = re.compile(r"\d+-([A-Z]\d?)(?:-S\d)?", re.IGNORECASE)
_MOVED_ASIDE = re.compile(r"\.replaced-\d{8}T\d{6}Z(-\d+)?$")
_BIDS = re.compile(r"sub-[0-9A-Za-z]+(?:_[a-z]+-[0-9A-Za-z]+)*_[0-9A-Za-z]+")
# A date, or a visit: of whom, the folder above says.
_OCCASION = re.compile(
    r"(?:19|20)\d\d([-_. ]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?:[T_-]?\d{4,6})?"
    r"|(?:ses|session|visit|timepoint|tp|exam|study|scan|day|week|month)[ _-]?\d{0,3}"
    r"|baseline|follow[ _-]?up[ _-]?\d{0,3}|(?:pre|post)[ _-]?op",
    re.IGNORECASE,
)
WORST_RANK = 2
NNUNET_IMAGE_FOLDERS = ("imagestr", "imagests", "imagesva")
NNUNET_LABEL_FOLDERS = ("labelstr", "labelsts", "labelsva")
"""Folders of an nnU-Net raw data set, in lower case; the n-th of each belong together."""
MASK_FOLDERS = (*NNUNET_LABEL_FOLDERS, "labels", "masks", "segmentations")
"""Folders, in lower case, in which no scans lie."""
_LONGEST_NAME_BYTES = 180
"""The limit of file systems (255), minus suffixes and temporary prefixes."""


@dataclass(frozen=True)
class SequenceName:
    """A recognised sequence. ``rank`` orders spellings: 0 is the canonical one, larger is worse."""

    sequence: str
    rank: int


@dataclass(frozen=True)
class MaskName:
    """The kind of a mask or map by its name, and the stem of its image."""

    kind: str
    image_stem: str


def split_volume_name(name: str) -> tuple[str, str] | None:
    """Split a file name into stem and volume suffix (lower case); None for other files."""
    suffix = image_extension(Path(name))
    return (name[: -len(suffix)], suffix) if suffix and len(name) > len(suffix) else None


def is_bids_stem(stem: str) -> bool:
    """Return whether a name follows BIDS, such as ``sub-01_ses-1_T2w``."""
    return _BIDS.fullmatch(stem) is not None


def is_hidden(name: str) -> bool:
    """Return whether an entry is hidden (``.DS_Store``) or was moved aside by this program."""
    return name.startswith(".") or name == "__MACOSX" or _MOVED_ASIDE.search(name) is not None


def parse_mask_stem(stem: str) -> MaskName | None:
    """Recognise masks and maps of an image ``X`` by their names; None for any other.

    They are ``mask_X``, ``organs_X``, ``probability_X``, ``uncertainty_X``, ``X_pred`` and, all of
    kind ``mask`` or ``seg``, ``X_mask``, ``X_seg``, ``X.seg``, ``X-label``, ``X_gt``,
    ``X_groundtruth``, ``X_roi``, ``X_manual``, ``X_annotation`` and ``X_segmentation``. A
    ``segmentation``, ``mask`` or ``label`` alone belongs to the only image of its folder: its
    ``image_stem`` is empty.
    """
    if _MASK_ALONE.fullmatch(stem):
        return MaskName(kind="mask", image_stem="")
    prefix = _MASK_PREFIX.match(stem)
    if prefix:
        return MaskName(kind=prefix[1].lower(), image_stem=stem[prefix.end() :])
    suffix = _MASK_SUFFIX.search(stem)
    if suffix:
        kind = suffix[1].lower()
        kind = kind if kind in ("mask", "pred") else "seg"
        return MaskName(kind=kind, image_stem=stem[: suffix.start()])
    return None


def parse_sequence(stem: str) -> SequenceName | None:
    """Recognise a sequence by a file's stem; None for any other name.

    Ranks: 0 the canonical name, 1 another spelling of it (``T2WI``, ``GED-4``, ``DWI_b800``),
    2 a diffusion image that does not say b = 800. An ADC map is none.
    """
    upper = stem.upper()
    if upper in SEQUENCES:
        return SequenceName(upper, rank=0)
    for prefix, pattern in _SEQUENCE_PATTERNS:
        match = pattern.fullmatch(stem)
        if match:
            return SequenceName(f"{prefix}{match[1]}", rank=1)
    if _DWI.fullmatch(stem) and not is_derived(stem):
        return SequenceName("DWI_800", rank=1 if _DWI_800.fullmatch(stem) else WORST_RANK)
    return None


def is_derived(stem: str) -> bool:
    """Whether a name is, or ends in, that of an image computed from others (``DWI_ADC``)."""
    return re.split(r"[ _-]", stem.lower())[-1] in _DERIVED


def other_b_value(stem: str) -> int | None:
    """Return the b-value that the name of a diffusion image says, if it is not 800."""
    match = _B_VALUE.match(stem)
    value = int(match[1] or match[2]) if match else 800
    return None if value == 800 else value


def parse_sequence_list(text: str, *, option: str = "--sequences") -> tuple[str, ...]:
    """Read a user's choice such as ``GED4,T1`` into canonical names in processing order.

    Raises UsageError, which names the option: a name is no sequence, or there is none.
    """
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    parsed = {word: parse_sequence(word) for word in words}
    unknown = [word for word, name in parsed.items() if name is None]
    if unknown or not words:
        raise UsageError(
            f"{option} {text!r}",
            reason=f"no such sequence: {', '.join(unknown)}" if unknown else "the list is empty",
            remedy=f"Choose from {', '.join(SEQUENCES)}",
        )
    chosen = {name.sequence for name in parsed.values() if name is not None}
    return tuple(sequence for sequence in SEQUENCES if sequence in chosen)


def sequence_order(sequence: str | None) -> int:
    """Return a sort key that puts sequences in processing order and None last."""
    return len(SEQUENCES) if sequence is None else SEQUENCES.index(sequence)


def is_occasion(name: str) -> bool:
    """Whether a folder's name is a date or that of a visit, and so says nothing of the patient."""
    return _OCCASION.fullmatch(name) is not None


def vendor_of_folder(name: str) -> str | None:
    """Return ``A`` for ``Vendor_A``, ``Vendor-A``, ``VendorA`` or ``vendor a``; else None."""
    match = _VENDOR_FOLDER.fullmatch(name)
    return match[1].upper() if match else None


def vendor_of_case(name: str) -> str | None:
    """Return ``A`` for a challenge case, ``0930-A`` or ``1406-A-S1``; else None."""
    match = _CASE.fullmatch(name)
    return match[1].upper() if match else None


def identity_key(name: str) -> str:
    """Return a key under which names that are one name on some file system are equal."""
    return unicodedata.normalize("NFC", name).casefold()


def unsafe_reason(name: str) -> str | None:
    """Return why a name cannot be part of an output path; None if it can."""
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not name.strip(" ."):
        return "is empty or consists of dots"
    if any(character in "/\\" or not character.isprintable() for character in name):
        return "holds a control character or a path separator"
    if len(encoded) > _LONGEST_NAME_BYTES:
        return f"is longer than {_LONGEST_NAME_BYTES} bytes"
    return None
