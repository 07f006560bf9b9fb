"""What unlabelled volumes gain: supervised, few-shot, SSL-MedSAM2, and the ceiling.

Each draw splits the volumes of `chaos_mr_t2` anew: 3 labelled, 9 unlabelled, 4 to test on.

    (a) nnU-Net on the 3 labelled volumes
    (b) the few-shot branch alone
    (c) SSL-MedSAM2 after each round: the ensemble of the round's folds
    (d) nnU-Net on all 12, all labelled: the ceiling

All networks are of the compact preset, begin with one that was trained on phantoms only, and get
the same number of iterations; those of (c) share them out over the rounds, each of which goes on
from the one before. The first round of (c) learns from reference masks alone. Nothing is
chosen by the test volumes.

    python benchmarks/semi_supervised.py --json benchmarks/results/semi_supervised.json

Run again, it goes on in `--work-dir`. `--plot FILE` draws the figures.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, parser, report, require_real_data

N_LABELLED, N_UNLABELLED = 3, 9
PHANTOMS, PHANTOM_SEED, PHANTOM_EPOCHS = 14, 7000, 12
FOLDS, ROUNDS = 3, 2
EPOCHS = 16
"""Of 50 iterations, a network, in all its rounds together."""
CONTRAST_PROBABILITY = 0.15
"""Random contrasts are for other sequences than this one; few leave more of the budget to it."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, default=ROOT / "out" / "semi_supervised")
    arguments.add_argument("--draws", type=int, default=2)
    arguments.add_argument("--plot", type=Path)
    options = arguments.parse_args()
    cases = sorted(path for path in require_real_data("chaos_mr_t2").iterdir() if path.is_dir())
    start = phantom_start(options.work_dir)
    draws = []
    for seed in range(1, options.draws + 1):
        draws.append(one_draw(seed, cases, work_dir=options.work_dir / f"draw_{seed}", start=start))
        report(summary(draws), options.json)
    if options.plot is not None:
        plot(draws, options.plot)


def phantom_start(work_dir: Path) -> Path:
    """Train the common start on phantoms, which show no patient."""
    from sslmedsam2.nnunet.training import trained_model_dir
    from sslmedsam2.phantom.studies import write_training_cases
    from sslmedsam2.train.pipeline import TrainOptions, train

    data, network = work_dir / "phantoms", work_dir / "start"
    checkpoint = trained_model_dir(network) / "fold_all" / "checkpoint_final.pth"
    if not checkpoint.is_file():
        write_training_cases(data, cases=PHANTOMS, labelled=PHANTOMS, seed=PHANTOM_SEED)
        train(TrainOptions(data, network, folds=0, final_epochs=PHANTOM_EPOCHS))
    return checkpoint


def one_draw(seed: int, cases: Sequence[Path], *, work_dir: Path, start: Path) -> dict[str, Any]:
    """Do one draw, or what is left of it."""
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    labelled = sorted(shuffled[:N_LABELLED])
    unlabelled = sorted(shuffled[N_LABELLED : N_LABELLED + N_UNLABELLED])
    tests = sorted(shuffled[N_LABELLED + N_UNLABELLED :])
    folders = {
        "labelled": link_cases(labelled, work_dir / "labelled", masks=True),
        "unlabelled": link_cases(unlabelled, work_dir / "unlabelled", masks=False),
        "all": link_cases([*labelled, *unlabelled], work_dir / "all", masks=True),
        "test": link_cases(tests, work_dir / "test", masks=False),
    }
    figures: dict[str, Any] = {
        "seed": seed,
        "labelled": [case.name for case in labelled],
        "test": [case.name for case in tests],
    }
    done = work_dir / "figures.json"
    if done.is_file():
        figures = json.loads(done.read_text())
    for name, work in (
        ("fewshot", lambda: fewshot(folders, tests, work_dir)),
        ("supervised_few", lambda: supervised(folders["labelled"], tests, work_dir / "a", start)),
        ("ssl", lambda: ssl(folders, tests, unlabelled, work_dir, start)),
        ("supervised_all", lambda: supervised(folders["all"], tests, work_dir / "d", start)),
    ):
        if name not in figures:
            figures[name] = work()
            done.write_text(json.dumps(figures, indent=1))
    return figures


def link_cases(cases: Sequence[Path], folder: Path, *, masks: bool) -> Path:
    """Copy the cases' images, and their masks if these may be known."""
    for case in cases:
        (folder / case.name).mkdir(parents=True, exist_ok=True)
        for name in ("T2.nii.gz", *(["mask_T2.nii.gz"] if masks else [])):
            shutil.copy(case / name, folder / case.name / name)
    return folder


def fewshot(folders: Mapping[str, Path], tests: Sequence[Path], work_dir: Path) -> Any:
    """(b): label the test volumes by the few-shot branch."""
    from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions, pseudo_label

    output = work_dir / "b"
    pseudo_label(
        PseudoLabelOptions(
            folders["labelled"], folders["test"], output, sam2="compact", resume=True
        )
    )
    return scored({case.name: output / case.name / "T2_pred.nii.gz" for case in tests}, tests)


def supervised(data: Path, tests: Sequence[Path], work_dir: Path, start: Path) -> Any:
    """(a) and (d): one network on all labelled volumes of a folder."""
    model = trained(data, work_dir, epochs=EPOCHS, start=start)
    return predicted(model, ("all",), tests, work_dir / "predicted")


def trained(data: Path, work_dir: Path, *, epochs: int, start: Path | None) -> Path:
    """Train one network on all labelled volumes of a folder and return its model folder."""
    from sslmedsam2.nnunet.training import trained_model_dir
    from sslmedsam2.train.pipeline import TrainOptions, train

    train(
        TrainOptions(
            data,
            work_dir,
            folds=0,
            final_epochs=epochs,
            start=start,
            contrast_probability=CONTRAST_PROBABILITY,
        )
    )
    return trained_model_dir(work_dir)


def ssl(
    folders: Mapping[str, Path],
    tests: Sequence[Path],
    unlabelled: Sequence[Path],
    work_dir: Path,
    start: Path,
) -> Any:
    """(c): the whole loop, and each round's networks on the test volumes."""
    from sslmedsam2.nnunet.training import trained_model_dir
    from sslmedsam2.retrain.pipeline import retrain

    options = ssl_options(folders, work_dir / "c", start)
    summary = retrain(options)
    assert summary.decision is not None
    rounds = []
    masks = options.work_dir / "pseudo_labels"
    pseudo = [scored({c.name: masks / c.name / "T2_pred.nii.gz" for c in unlabelled}, unlabelled)]
    folds = tuple(str(fold) for fold in range(FOLDS))
    for figures in summary.rounds:
        step = options.work_dir / f"round_{figures.number}"
        output = work_dir / f"predicted_round_{figures.number}"
        rounds.append(predicted(trained_model_dir(step), folds, tests, output))
        masks = step / "relabelled"
        pseudo.append(
            scored({c.name: masks / c.name / "T2_pred.nii.gz" for c in unlabelled}, unlabelled)
        )
    selection = [
        json.loads((options.work_dir / f"round_{n + 1}" / "selection.json").read_text())["choices"]
        for n in range(len(rounds))
    ]
    return {
        "rounds": rounds,
        "pseudo_labels": pseudo,
        "trained_on": [sum(choice["trains"] for choice in choices) for choices in selection],
        "validation_dice": [figures.validation_dice for figures in summary.rounds],
        "change_dice": [figures.change_dice for figures in summary.rounds],
        "picked_round": summary.decision.best_round,
    }


def ssl_options(folders: Mapping[str, Path], work_dir: Path, start: Path) -> Any:
    """Return the options of (c)."""
    from sslmedsam2.retrain.options import RetrainOptions
    from sslmedsam2.retrain.selection import StoppingRule

    return RetrainOptions(
        folders["labelled"],
        folders["unlabelled"],
        work_dir,
        folds=FOLDS,
        epochs=EPOCHS // ROUNDS,
        start=start,
        contrast_probability=CONTRAST_PROBABILITY,
        reference_masks_first=True,
        rule=replace(StoppingRule(), most_rounds=ROUNDS, fixed=True),
    )


def predicted(model: Path, folds: tuple[str, ...], tests: Sequence[Path], output: Path) -> Any:
    """Segment the test volumes and score the masks."""
    from sslmedsam2.imaging.reading import read_volume
    from sslmedsam2.imaging.writing import write_mask
    from sslmedsam2.inference.masks import judge, make_ready
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

    segmenter = CanonicalSegmenter(read_model_spec(model, folds=folds), EngineOptions(device="cpu"))
    masks = {}
    for case in tests:
        ready = make_ready(read_volume(case / "T2.nii.gz"))
        found = segmenter.segment(ready.canonical)
        masks[case.name] = output / case.name / "T2_pred.nii.gz"
        mask = judge(found.mask_zyx, ready, found).mask_zyx
        write_mask(mask, like=ready.volume, path=masks[case.name])
    return scored(masks, tests)


def scored(masks: Mapping[str, Path], cases: Sequence[Path]) -> dict[str, Any]:
    """Compare masks with the reference masks; an empty mask's distances are the scan's diagonal."""
    from sslmedsam2.imaging.reading import read_mask
    from sslmedsam2.submission.metrics import diagonal_mm, measure

    rows = {}
    for case in cases:
        truth, found = read_mask(case / "mask_T2.nii.gz"), read_mask(masks[case.name])
        spacing = truth.geometry.spacing_zyx_mm
        metrics = measure(found.array_zyx, truth.array_zyx > 0, spacing_zyx_mm=spacing)
        distances = [metrics.hausdorff_mm, metrics.hausdorff95_mm]
        if not found.array_zyx.any():
            distances = [diagonal_mm(truth.array_zyx.shape, spacing_zyx_mm=spacing)] * 2
        rows[case.name] = [round(metrics.dice, 4), *(round(d, 2) for d in distances)]
    means = [round(statistics.mean(column), 4) for column in zip(*rows.values(), strict=True)]
    return {"dice": means[0], "hausdorff_mm": means[1], "hausdorff95_mm": means[2], "cases": rows}


def summary(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over draws, and the draws themselves."""
    picked = [draw["ssl"]["rounds"][draw["ssl"]["picked_round"] - 1] for draw in draws]
    arms = {
        "supervised_few": [draw["supervised_few"] for draw in draws],
        "fewshot": [draw["fewshot"] for draw in draws],
        "ssl": picked,
        "supervised_all": [draw["supervised_all"] for draw in draws],
    }
    means = {
        f"{arm}_{metric}": round(statistics.mean(figures[metric] for figures in of_draws), 4)
        for arm, of_draws in arms.items()
        for metric in ("dice", "hausdorff_mm", "hausdorff95_mm")
    }
    return {
        **means,
        "gain_over_supervised_few": round(means["ssl_dice"] - means["supervised_few_dice"], 4),
        "below_supervised_all": round(means["supervised_all_dice"] - means["ssl_dice"], 4),
        "iterations": EPOCHS * 50,
        "draws": list(draws),
    }


def plot(draws: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw Dice of every arm, one line a draw, the dashed line for the pseudo masks themselves."""
    import matplotlib
    from matplotlib import pyplot as plt

    # nnU-Net's own plots leave huge letters behind.
    matplotlib.rcdefaults()
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for draw in draws:
        ssl_rounds = [one["dice"] for one in draw["ssl"]["rounds"]]
        values = [
            draw["supervised_few"]["dice"],
            draw["fewshot"]["dice"],
            *ssl_rounds,
            draw["supervised_all"]["dice"],
        ]
        names = [
            "nnU-Net, 3 labelled",
            "few-shot",
            *(f"SSL round {number}" for number in range(1, len(ssl_rounds) + 1)),
            "nnU-Net, 12 labelled",
        ]
        (line,) = axes.plot(names, values, "o-", label=f"draw {draw['seed']}, test volumes")
        pseudo = [one["dice"] for one in draw["ssl"]["pseudo_labels"]]
        axes.plot(
            names[1 : 1 + len(pseudo)],
            pseudo,
            "s--",
            color=line.get_color(),
            alpha=0.6,
            label=f"draw {draw['seed']}, pseudo masks",
        )
    axes.set_ylabel("Dice")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.autofmt_xdate(rotation=15)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
