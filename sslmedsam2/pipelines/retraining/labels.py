"""The newest pseudo labels of the unlabelled images, whoever made them: the few-shot branch or a
round's networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sslmedsam2.contract.pseudo_labels import CALIBRATION_NAME, PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.pipelines.pseudo_label_records import read_record
from sslmedsam2.pipelines.retraining.index import Query
from sslmedsam2.pipelines.retraining.relabel_records import read_relabel_record
from sslmedsam2.pipelines.retraining.work_dir import RoundDir, WorkDir, read_json
from sslmedsam2.refine.selection import Candidate
from sslmedsam2.weights.manifest import sha256_file


@dataclass(frozen=True)
class PseudoLabel:
    """An unlabelled image with its newest mask.

    Attributes
    ----------
    paths
        Of mask and maps; the files exist if ``has_mask``.
    candidate
        What the selection wants to know.
    """

    query: Query
    paths: PseudoLabelPaths
    candidate: Candidate
    has_mask: bool

    @property
    def key(self) -> str | None:
        """Hash of the mask and its uncertainty, read when asked for; None without a mask."""
        if not self.has_mask:
            return None
        return sha256_file(self.paths.mask) + sha256_file(self.paths.uncertainty)


def fewshot_labels(work: WorkDir, queries: Sequence[Query]) -> tuple[PseudoLabel, ...]:
    """Read what the few-shot branch gave, in the order of ``queries``."""
    return tuple(_fewshot(work, query) for query in queries)


def fewshot_worth(work: WorkDir) -> float | None:
    """Return the few-shot branch's mean Dice on expert masks, each labelled by the others.

    None if there was only one labelled patient, or the calibration cannot be read.
    """
    path = work.pseudo_labels / CALIBRATION_NAME
    cases = read_json(path)["cases"] if path.is_file() else []
    return sum(case["dice"] for case in cases) / len(cases) if cases else None


def _fewshot(work: WorkDir, query: Query) -> PseudoLabel:
    paths = pseudo_label_paths(work.pseudo_labels, query.series)
    record = read_record(paths.record) if paths.record.is_file() else None
    if record is None or record.verdict is None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    if record.mask_sha256 is not None and sha256_file(paths.mask) != record.mask_sha256:
        has_liver = bool(read_mask(paths.mask).array_zyx.any())
        candidate = Candidate(query.name, record.verdict, has_liver=has_liver, mended=True)
    else:
        candidate = Candidate(query.name, record.verdict, has_liver=bool(record.volume_ml))
    return PseudoLabel(query, paths, candidate, has_mask=True)


def relabelled(step: RoundDir, fewshot: Sequence[PseudoLabel]) -> tuple[PseudoLabel, ...]:
    """Read what a finished round's networks gave, in the order of the few-shot branch's labels."""
    return tuple(_relabelled(step, label.query, label.candidate) for label in fewshot)


def _relabelled(step: RoundDir, query: Query, fewshot: Candidate) -> PseudoLabel:
    paths = pseudo_label_paths(step.relabelled, query.series)
    record = read_relabel_record(paths.record) if paths.record.is_file() else None
    if record is None or record.error is not None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    candidate = replace(
        fewshot,
        agreement=record.agreement,
        trained_before=record.trained,
        has_liver=record.volume_ml > 0,
    )
    return PseudoLabel(query, paths, candidate, has_mask=True)
