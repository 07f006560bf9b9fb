"""Guess the sequence of one volume from its header, with the reason.

The names are those of the challenge: ``T1`` is before contrast, ``GED1`` to ``GED3`` are the
arterial, portal venous and transitional phase, ``GED4`` is the hepatobiliary phase. Reasons quote
numbers and the words of the lists below, never the header's own text.

Descriptions are understood in English, German, French, Spanish, Italian, Chinese and Japanese.

Descriptions take precedence over acquisition parameters: hospitals name phases, and no tag does.
T1-weighted volumes with contrast and without a named phase are left to ``phases.py``, which uses
the whole study.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sslmedsam2.dicom.model import IMAGE_MODALITIES, TRACE, Frame
from sslmedsam2.dicom.volumes import normal_of

Kind = Literal["sequence", "post_contrast", "no_sequence", "left_out"]

_DWI_RANGE = (600.0, 1000.0)
_DWI_BEST = 800.0
_T2_FROM_TE_MS = 60.0
_T1_BELOW_TE_MS = 12.0
_T1_BELOW_TR_MS = 800.0
_MRCP_FROM_TE_MS = 400.0
HEPATOBILIARY_FROM_MIN = 10.0
_TRANSITIONAL_FROM_MIN = 2.0
_AXIAL_COSINE = 0.8


def _listed(text: str) -> tuple[str, ...]:
    """Split a list of words at its bars."""
    return tuple(text.split("|"))


_LOCALIZER = _listed(
    "localizer|localiser|loc|scout|survey|3plane|3 plane|topogram|lokalizer|lokalisator|"
    "localizador|localisateur|reperage|定位|位置決|スカウト"
)


def _reasons(words: Mapping[str, str]) -> dict[str, str]:
    """Return the key of each word of some lists."""
    return {word: reason for reason, listed in words.items() for word in _listed(listed)}


_DERIVED_TYPES = _reasons(
    {
        "an ADC map": "ADC|EADC",
        "an anisotropy map": "FA",
        "a subtraction": "SUB|SUBTRACT|SUBTRACTION",
        "a projection": "MIP|MNIP|MINIP|PROJECTION IMAGE",
        "a reformat": "MPR|REFORMATTED|RESAMPLED",
        "a parameter map": "T1 MAP|T2 MAP|R2 MAP|R2_STAR MAP|T2_STAR MAP|FAT_FRACTION",
        "a phase image": "P|PHASE MAP",
        "a real image": "R|REAL",
        "an imaginary image": "I|IMAGINARY",
        "a fat image": "F|FAT",
    }
)
_DERIVED_WORDS = _reasons(
    {
        "an ADC map": "adc|eadc",
        "a subtraction": "sub|subtraction|subtraktion|soustraction|sustraccion|sottrazione|减影|"
        "減影|サブトラクション|差分",
        "a projection": "mip|minip",
        "a reformat": "mpr",
        "a parameter map": "t1 map|t2 map|pdff|fat fraction",
        "a picture of a screen": "screenshot",
    }
)
_DIFFUSION = _listed(
    "dwi|diff|diffusion|ep2d diff|resolve|tracew|ivim|difusion|diffusione|弥散|扩散|擴散|拡散"
)
_BEFORE_CONTRAST = _listed(
    "pre|precontrast|pre contrast|native|nativ|unenhanced|non contrast|without contrast|"
    "ohne km|vor km|pra km|prae km|ohne kontrast|ohne kontrastmittel|avant injection|"
    "sans injection|sans contraste|sans gado|sin contraste|sin civ|precontraste|pre contraste|"
    "basal|senza contrasto|senza mdc|平扫|平掃|增强前|增強前|造影前|単純"
)
_PHASES = {
    "GED4": _listed(
        "hepatobiliary|hepatobiliar|hepatobiliare|hepatobiliaer|hepatobiliaere|hepatobiliaire|"
        "hepato biliary|hepato biliar|hepato biliare|hepato biliaire|epatobiliare|"
        "epato biliare|leberspezifisch|leberspezifische|hbp|hb phase|ged4|肝胆期|肝胆特|"
        "肝胆相|肝胆道相|肝胆道造影|肝膽期|肝膽特|肝膽相|肝细胞期|肝细胞特|肝細胞期|肝細胞相|"
        "肝細胞造影|肝特异|肝特異"
    ),
    "GED1": _listed(
        "arterial|arteriell|arterielle|arteriel|arterielles|arteriosa|arterioso|art|hap|ged1|"
        "动脉|動脈|动态早期"
    ),
    "GED2": _listed(
        "portal|portalvenous|portalvenoes|portovenous|pvp|pv|venous|venoes|venos|portalvenos|"
        "portalvenose|portovenos|portovenoes|portale|portalveneux|portoveineux|veineux|"
        "veineuse|venosa|venoso|portovenosa|ven|ged2|门脉|門脈|门静脉|門靜脈|門静脈|静脉|靜脈|"
        "静脈"
    ),
    "GED3": _listed(
        "transitional|equilibrium|delayed|delay|late|interstitial|ged3|transition|"
        "transitionnel|transitionnelle|tardif|tardive|equilibre|interstitiel|interstitielle|"
        "gleichgewicht|aquilibrium|aequilibrium|spat|spaet|spatphase|spaetphase|transicional|"
        "transicion|tardia|tardio|tardiva|equilibrio|移行|过渡|過渡|平衡|延迟|延遲|遅延|後期"
    ),
}
_AFTER_CONTRAST = _listed(
    "post|postcontrast|km|gd|gad|primovist|eovist|gadoxetate|contrast|dynamic|dyn|dynamik|"
    "dynamisch|dynamique|dinamico|dinamica|gado|gadolinium|eob|injection|injecte|contraste|"
    "contrasto|civ|mdc|增强|增強|动态|動態|造影|ダイナミック"
)
_T2_WORDS = _listed("t2|t2w|t2wi|haste|ssfse|sshtse|blade|propeller")
_T1_WORDS = _listed(
    "t1|t1w|t1wi|vibe|lava|thrive|ethrive|starvibe|quick3d|flash|fl2d|fl3d|spgr|fspgr|dixon|"
    "mdixon|tfe|twist"
)
_MRCP_WORDS = _listed("mrcp|cholangio|cholangiography")
_STEADY_WORDS = _listed("trufi|trufisp|fiesta|bffe|b ffe|bssfp|truefisp")
_MINUTES = re.compile(r"\b(\d{1,2}) ?(?:(?:min|mins|mn|minutes|minuten|minutos|minuti)\b|分)")
_B_WORD = re.compile(r"\bb ?(\d{2,4})\b")


@dataclass(frozen=True)
class Guess:
    """The guessed sequence of a volume.

    Attributes
    ----------
    kind
        ``post_contrast``: T1-weighted after contrast, phase not named; ``no_sequence``: an image of
        no sequence of the challenge; ``left_out``: not an image to segment.
    sequence
        For kind ``sequence``.
    penalty
        Orders rivals for one sequence within a study: less is better.
    """

    kind: Kind
    reason: str
    sequence: str | None = None
    penalty: float = 0.0


def exclusion_of(frame: Frame) -> str | None:
    """Return why images of this kind are not segmented unless the user asks; else None."""
    if frame.modality not in IMAGE_MODALITIES:
        return f"modality {_code(frame.modality)} is neither MR nor CT"
    if not (frame.rows and frame.columns):
        return "it holds no pixels"
    if frame.is_capture:
        return "a picture of a screen or a page"
    if frame.is_colour:
        return "a colour image"
    words = _words(frame.text)
    if "LOCALIZER" in frame.image_type or _first_word(words, _LOCALIZER):
        return "a localizer"
    derived = next((_DERIVED_TYPES[v] for v in frame.image_type[2:] if v in _DERIVED_TYPES), None)
    word = _first_word(words, _DERIVED_WORDS)
    if derived or word:
        return derived or _DERIVED_WORDS[word or ""]
    if frame.image_type[:2] == ("DERIVED", "SECONDARY"):
        return "a derived image (image type DERIVED, SECONDARY)"
    return None


def guess_sequence(frame: Frame) -> Guess:
    """Guess the sequence of a volume from the header of its first frame."""
    if frame.modality == "CT":
        return Guess("no_sequence", "CT: it has no sequence name")
    words = _words(frame.text)
    diffusion = _guess_diffusion(frame, words)
    if diffusion is not None:
        return diffusion
    named = _guess_phase(words)
    # "Hepatobiliary" is also what whole protocols are called.
    is_native = named is not None and named[0] == "GED4" and _first_word(words, _BEFORE_CONTRAST)
    if named is not None and not is_native and not _first_word(words, _T2_WORDS):
        return _ranked(Guess("sequence", named[1], named[0]), frame)
    return _ranked(_guess_weighting(frame, words), frame)


def has_contrast(frame: Frame) -> str | None:
    """Return the sign that contrast agent was given, or None."""
    given_s, acquired_s = frame.contrast_from_s, frame.acquired_s
    if given_s is not None and acquired_s is not None and acquired_s < given_s:
        return None
    if frame.contrast_agent:
        return "a contrast agent is recorded"
    word = _first_word(_words(frame.text), _AFTER_CONTRAST)
    return f"the description says '{word}'" if word else None


def _guess_diffusion(frame: Frame, words: str) -> Guess | None:
    word = _first_word(words, _DIFFUSION)
    in_words = _B_WORD.search(words)
    b_value = frame.b_value
    if not b_value and in_words and (word or b_value == 0):
        b_value = float(in_words[1])
    if not (word or b_value):
        return None
    if b_value is None:
        reason = f"the description says '{word}'; the b-value is not known"
        return _ranked(Guess("sequence", reason, "DWI_800", penalty=_DWI_BEST), frame)
    if not _DWI_RANGE[0] <= b_value <= _DWI_RANGE[1]:
        low, high = _DWI_RANGE
        reason = f"a diffusion image at b = {b_value:g} s/mm2, outside {low:g} to {high:g}"
        return Guess("left_out", reason)
    return _ranked(
        Guess(
            "sequence", f"b = {b_value:g} s/mm2", "DWI_800", penalty=abs(b_value - _DWI_BEST) / 100
        ),
        frame,
    )


def _guess_phase(words: str) -> tuple[str, str] | None:
    """Find the phase that a description names: (sequence, reason)."""
    minutes = _MINUTES.search(words)
    if minutes and float(minutes[1]) >= _TRANSITIONAL_FROM_MIN:
        late = float(minutes[1]) >= HEPATOBILIARY_FROM_MIN
        return "GED4" if late else "GED3", f"the description says {int(minutes[1])} min"
    for sequence, phase_words in _PHASES.items():
        word = _first_word(words, phase_words)
        if word:
            return sequence, f"the description says '{word}'"
    return None


def _guess_weighting(frame: Frame, words: str) -> Guess:
    """Distinguish T1 and T2 by description, else by echo and repetition time."""
    te, tr = frame.echo_time_ms, frame.repetition_time_ms
    if _first_word(words, _MRCP_WORDS) or (te is not None and te >= _MRCP_FROM_TE_MS):
        return Guess("no_sequence", "an image of the bile ducts (MRCP)")
    if _first_word(words, _STEADY_WORDS):
        return Guess("no_sequence", "a steady-state image, neither T1- nor T2-weighted")
    word = _first_word(words, _T2_WORDS)
    if word:
        return Guess("sequence", f"the description says '{word}'", "T2")
    word = _first_word(words, _T1_WORDS)
    short = te is not None and tr is not None and te < _T1_BELOW_TE_MS and tr < _T1_BELOW_TR_MS
    if word or (frame.is_gradient_echo and short):
        reason = f"the description says '{word}'" if word else f"gradient echo, {_times(frame)}"
        if _first_word(words, _BEFORE_CONTRAST):
            return Guess("sequence", f"{reason} and that it is before contrast", "T1")
        if has_contrast(frame):
            return Guess("post_contrast", f"{reason}; {has_contrast(frame)}")
        return Guess("sequence", f"{reason}; no sign of contrast agent", "T1", penalty=0.5)
    if te is not None and te >= _T2_FROM_TE_MS and not frame.is_gradient_echo:
        return Guess("sequence", f"spin echo, {_times(frame)}", "T2", penalty=0.5)
    return Guess("no_sequence", "the header names no sequence of the challenge")


def _ranked(guess: Guess, frame: Frame) -> Guess:
    """Increase the penalty of a volume that is a worse representative of its sequence."""
    types = set(frame.image_type)
    penalty = guess.penalty
    penalty += 10 * (abs(float(normal_of(frame)[2])) < _AXIAL_COSINE if frame.orientation else 1)
    # Of Dixon's images the water image looks like an ordinary fat-saturated one.
    penalty += 2 * bool(types & {"IN_PHASE", "IP", "OPP_PHASE", "OUT_PHASE", "OP"})
    penalty += 1 * (frame.diffusion_direction not in ("", TRACE))
    penalty += 1 * (frame.image_type[:1] == ("DERIVED",))
    return Guess(guess.kind, guess.reason, guess.sequence, penalty)


def _words(text: str) -> str:
    """Return letters and digits, accents removed, with single spaces between and around them."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", decomposed)).lower()
    found = re.findall(r"[a-z0-9]+|[^\W_a-z0-9]+", plain)
    return f" {' '.join(found)} "


def _first_word(words: str, wanted: Iterable[str]) -> str | None:
    """Return the first wanted word; Chinese and Japanese have no spaces between words."""
    return next(
        (word for word in wanted if (f" {word} " if word.isascii() else word) in words), None
    )


def _times(frame: Frame) -> str:
    def shown(value: float | None) -> str:
        return "unknown" if value is None else f"{np.round(value, 1):g} ms"

    return f"TE {shown(frame.echo_time_ms)}, TR {shown(frame.repetition_time_ms)}"


def _code(modality: str) -> str:
    """Return a DICOM code, or a question mark for any other text."""
    return modality if re.fullmatch(r"[A-Z]{2,16}", modality) else "?"
