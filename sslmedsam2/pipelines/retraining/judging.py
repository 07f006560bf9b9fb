"""What the finished rounds came to, read from their outcomes."""

from __future__ import annotations

from sslmedsam2.pipelines.retraining.options import RetrainOptions
from sslmedsam2.pipelines.retraining.work_dir import WorkDir, read_json
from sslmedsam2.refine.convergence import Decision, RoundFigures, decide


def finished_figures(work: WorkDir) -> tuple[RoundFigures, ...]:
    """Return what the finished rounds are judged by, in order."""
    outcomes = [read_json(step.outcome) for step in work.finished_rounds()]
    return tuple(
        RoundFigures(item["round"], item["validation_dice"], item["change_dice"])
        for item in outcomes
    )


def decision_so_far(options: RetrainOptions) -> Decision | None:
    """Judge the finished rounds; None if there is none."""
    figures = finished_figures(WorkDir(options.work_dir))
    return decide(figures, options.rule) if figures else None
