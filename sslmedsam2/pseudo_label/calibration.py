"""Calibration of the estimated Dice: leave-one-out over the supports."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.fewshot.outcome import mask_dice
from sslmedsam2.fewshot.reliability import Calibration, calibrate, judge, score
from sslmedsam2.fewshot.strategy import Evidence, Query, Strategy, Support
from sslmedsam2.imaging.records import read_record_or_none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationCase:
    """One support, segmented by the others as if it had no mask.

    Attributes
    ----------
    dice
        Of the result with the reference mask.
    score
        The evidence in one number.
    estimated_dice, interval
        What a calibration on all the other supports makes of this one: how good estimates are
        where the truth is not known.
    """

    name: str
    dice: float
    score: float
    estimated_dice: float
    interval: tuple[float, float]
    evidence: Evidence


@dataclass(frozen=True)
class CalibrationRun:
    """A calibration, what it rests on, and the `Provenance.key` that it holds for.

    Written after each support: one that was stopped goes on with the supports it lacks.
    """

    key: str
    calibration: Calibration
    cases: tuple[CalibrationCase, ...]

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The supports that it rests on."""
        return tuple(LeftOut(case.name, case.evidence, case.dice) for case in self.cases)


@dataclass(frozen=True)
class LeftOut:
    """How a support was labelled by all other patients'; ``dice`` with its reference mask."""

    name: str
    evidence: Evidence
    dice: float


def leave_out(strategy: Strategy, support: Support) -> LeftOut | None:
    """Segment a support by all other patients' and compare; None if that fails."""
    query = Query(support.name, support.case, support.image, support.geometry)
    try:
        found = strategy.segment(query, leave_out_case=support.case)
    except SslMedSam2Error as error:
        logger.error("left out of the calibration: %s", error)
        return None
    return LeftOut(
        support.name, found.evidence, mask_dice(found.mask_zyx > 0, support.mask_zyx > 0)
    )


def calibrate_on(found: Iterable[LeftOut], *, key: str) -> CalibrationRun:
    """Learn from supports, each labelled by the others, in the order of the supports."""
    known = {one.name: (one.evidence, one.dice) for one in found}
    cases = tuple(_case(name, known) for name in known)
    return CalibrationRun(key, calibrate(list(known.values())), cases)


def _case(name: str, known: dict[str, tuple[Evidence, float]]) -> CalibrationCase:
    evidence, dice = known[name]
    others = calibrate([pair for other, pair in known.items() if other != name])
    estimate = judge(evidence, others)
    return CalibrationCase(
        name=name,
        dice=dice,
        score=score(evidence),
        estimated_dice=estimate.estimated_dice,
        interval=estimate.interval,
        evidence=evidence,
    )


def read_calibration(path: Path, *, key: str) -> CalibrationRun | None:
    """Read an earlier calibration, which may lack supports, if it was made in the same way."""
    found = read_record_or_none(path, CalibrationRun)
    if found is not None and found.key != key:
        logger.info("%s was made from other data or settings and is made again", path.name)
        return None
    return found
