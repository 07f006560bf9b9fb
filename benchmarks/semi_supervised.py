"""What unlabelled volumes gain: nnU-Net on few labels, few-shot, SSL-MedSAM2, and the ceiling.

| proof | labelled | unlabelled | test |
|---|---|---|---|
| p0 | 3 T2 | 9 T2 | 4 T2 |
| p1 | 5 CT | 10 T2 | 6 T2 |
| p2 | 5 T2 | 12 CT | 6 CT |
| p3 | 1 T2 | 11 T2 | 4 T2 |

T2 is `chaos_mr_t2`, CT is `btcv_ct`. Each draw splits the volumes anew, for all arms alike:

    a  nnU-Net on the labelled volumes
    b  the few-shot branch alone
    c  `retrain --method online`, one network on all labelled and unlabelled volumes; without a
       fold that is held out, it cannot tell whether it beats the few-shot masks, and keeps them
    d  nnU-Net on the unlabelled volumes with their reference masks (and on the labelled ones, where
       both are of one sequence): the ceiling
    p  the published procedure: hard pseudo masks, no selection, three rounds
    rounds, online
       the command `retrain` with this method and two folds, which ship as an ensemble; each network
       gets the iterations of the others, in two rounds or in one training
    rounds_3, rounds_4
       the same goes on for a third and a fourth round of the same length

Variants of c, for the ablation, are in `VARIANTS`. All networks are of one size (`--preset`: a
narrow one, or the `compact` one of `retrain`), begin with the same random weights and get the same
number of iterations. The few-shot branch is the
compact SAM2, which was trained on synthetic volumes. Nothing is chosen by the test volumes.

    python benchmarks/semi_supervised.py --proof p1 --draw 0 --arm a --arm c
    python benchmarks/semi_supervised.py --plot docs/images/semi_supervised.png --json FILE

Run again, it goes on in `--work-dir`. Without `--arm` it only sums up what is there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, parser, report, require_real_data

ITERATIONS_PER_EPOCH = 50
PUBLISHED_ROUNDS = 3
PRESETS: dict[str, dict[str, Any]] = {
    "narrow": {
        "spacing_zyx_mm": (8.0, 6.0, 6.0),
        "patch_zyx": (24, 48, 48),
        "features": (8, 16, 32, 64),
        "strides_zyx": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    },
    "compact": {},
}
"""What differs from the preset `compact`."""
VARIANTS: dict[str, dict[str, Any]] = {
    "c": {},
    # Few-shot masks count in the first third only, also across sequences.
    "c_hand_over": {"hand_over": 1 / 3},
    # The teacher alone: no few-shot mask counts.
    "c_teacher": {"hand_over": 0.0},
    "c_all_voxels": {"sure_above": 0.5},
    "c_light": {"weight": 0.3},
}
"""Changes to the settings of an online training, by arm."""
COMMANDS = {
    "rounds": ("rounds", 2),
    "rounds_3": ("rounds", 3),
    "rounds_4": ("rounds", 4),
    "online": ("online", 1),
}
"""Method and number of rounds of the command `retrain`, by arm."""
ARMS = ("a", "b", "d", "p", *VARIANTS, *COMMANDS)


@dataclass(frozen=True)
class Proof:
    """Folders of the real data, and how many volumes of them."""

    labelled: tuple[str, int]
    unlabelled: tuple[str, int]
    tests: int
    contrast_probability: float

    @property
    def of_one_sequence(self) -> bool:
        """Whether labelled and unlabelled volumes are alike."""
        return self.labelled[0] == self.unlabelled[0]


T2, CT = "chaos_mr_t2", "btcv_ct"
PROOFS = {
    "p0": Proof((T2, 3), (T2, 9), 4, contrast_probability=0.15),
    "p1": Proof((CT, 5), (T2, 10), 6, contrast_probability=0.7),
    "p2": Proof((T2, 5), (CT, 12), 6, contrast_probability=0.7),
    "p3": Proof((T2, 1), (T2, 11), 4, contrast_probability=0.15),
}


@dataclass(frozen=True)
class Draw:
    """One split of a proof's volumes, its folders and the length of its trainings."""

    proof: Proof
    work_dir: Path
    seed: int
    iterations: int
    preset: str
    labelled: tuple[Path, ...]
    unlabelled: tuple[Path, ...]
    tests: tuple[Path, ...]

    def folder(self, name: str, cases: Sequence[Path], *, masks: bool) -> Path:
        """Copy the cases' images, and their masks if these may be known."""
        folder = self.work_dir / name
        for case in cases:
            (folder / case.name).mkdir(parents=True, exist_ok=True)
            image, mask = image_of(case), mask_of(case)
            for path in (image, mask) if masks else (image,):
                shutil.copy(path, folder / case.name / path.name)
        return folder


def image_of(case: Path) -> Path:
    """Return the one image that has a mask."""
    return case / mask_of(case).name.removeprefix("mask_")


def mask_of(case: Path) -> Path:
    """Return the reference mask."""
    (mask,) = case.glob("mask_*.nii.gz")
    return mask


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, default=ROOT / "out" / "semi_supervised")
    arguments.add_argument("--proof", choices=PROOFS, action="append")
    arguments.add_argument("--draw", type=int, action="append")
    arguments.add_argument("--arm", choices=ARMS, action="append")
    arguments.add_argument("--iterations", type=int, default=1500, help="of each network")
    arguments.add_argument("--preset", choices=PRESETS, default="narrow")
    arguments.add_argument("--plot", type=Path)
    options = arguments.parse_args()
    for name in options.proof or PROOFS if options.arm else ():
        for number in options.draw or [0]:
            draw = drawn(name, number, options)
            for arm in options.arm:
                run_arm(draw, arm)
    figures = summary(options.work_dir)
    report(figures, options.json)
    if options.plot is not None:
        plot(figures, options.plot)


def drawn(name: str, number: int, options: argparse.Namespace) -> Draw:
    """Split the volumes of a proof; the same number gives the same split."""
    proof = PROOFS[name]
    chance = random.Random(number)
    shuffled = {
        folder: chance.sample(cases, len(cases))
        for folder in sorted({proof.labelled[0], proof.unlabelled[0]})
        if (cases := sorted(p for p in require_real_data(folder).iterdir() if p.is_dir()))
    }

    def take(folder: str, count: int) -> tuple[Path, ...]:
        return tuple(sorted(shuffled[folder].pop() for _ in range(count)))

    return Draw(
        proof,
        options.work_dir / name / f"draw_{number}",
        seed=20260 + number,
        iterations=options.iterations,
        preset=options.preset,
        labelled=take(*proof.labelled),
        unlabelled=take(*proof.unlabelled),
        tests=take(proof.unlabelled[0], proof.tests),
    )


def run_arm(draw: Draw, arm: str) -> None:
    """Do an arm, or what is left of it, and write its figures beside those of the others."""
    done = draw.work_dir / "figures.json"
    figures = json.loads(done.read_text()) if done.is_file() else {}
    common = {"iterations": draw.iterations, "preset": draw.preset}
    if any(figures.get(key, value) != value for key, value in common.items()):
        sys.exit(f"{done} is of networks of another size or length: choose another --work-dir")
    figures |= {
        **common,
        **{part: [c.name for c in getattr(draw, part)] for part in ("labelled", "tests")},
    }
    if arm in figures:
        return
    start = time.time()
    if arm == "b":
        found = fewshot(draw)
    elif arm == "p":
        found = published(draw)
    elif arm in COMMANDS:
        found = tested(commanded(draw, *COMMANDS[arm]), draw, arm)
    else:
        folders = {"a": partial(supervised, cases=draw.labelled), "d": supervised_all}
        train = folders.get(arm, partial(online, arm=arm))
        found = tested(train(draw, work_dir=draw.work_dir / arm), draw, arm)
    figures[arm] = {**found, "hours": round((time.time() - start) / 3600, 2)}
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(figures, indent=1))


def settings(draw: Draw, *, share: float = 1.0) -> Any:
    """Return what all trainings of a draw have in common; ``share`` of the iterations is done."""
    from sslmedsam2.nnunet.trainer import TrainingSettings
    from sslmedsam2.nnunet.training import worth_measuring

    return TrainingSettings(
        epochs=max(1, round(share * draw.iterations / ITERATIONS_PER_EPOCH)),
        iterations_per_epoch=min(ITERATIONS_PER_EPOCH, draw.iterations),
        contrast_probability=draw.proof.contrast_probability,
        measure_cpu=worth_measuring(draw.iterations),
        seed=draw.seed,
    )


def preset(draw: Draw) -> Any:
    """Return the size of all networks of a draw."""
    from sslmedsam2.nnunet.plans import CompactPreset

    return CompactPreset(**PRESETS[draw.preset])


def supervised_all(draw: Draw, *, work_dir: Path) -> Path:
    """(d): the ceiling."""
    also = draw.labelled if draw.proof.of_one_sequence else ()
    return supervised(draw, cases=(*also, *draw.unlabelled), work_dir=work_dir)


def supervised(draw: Draw, *, cases: Sequence[Path], work_dir: Path) -> Path:
    """(a) and (d): one network on reference masks; returns its model folder."""
    from sslmedsam2.contract.labelled import find_labelled_series
    from sslmedsam2.nnunet.dataset import build_dataset
    from sslmedsam2.nnunet.training import preprocessed_dir

    folder = draw.folder(f"{work_dir.name}_data", cases, masks=True)
    images = find_labelled_series(folder)
    build_dataset(images, preprocessed_dir=preprocessed_dir(work_dir), preset=preset(draw))
    return trained(work_dir, settings(draw))


def trained(work_dir: Path, how: Any, *, start: Path | None = None) -> Path:
    """Train a network on the data set of a work directory and return its model folder."""
    from sslmedsam2.nnunet.training import train_fold, trained_model_dir

    train_fold(work_dir, fold="all", settings=how, device="cpu", warm_start=start)
    return trained_model_dir(work_dir)


def fewshot_folder(draw: Draw) -> Path:
    """Label the unlabelled and the test volumes by the few-shot branch; returns the folder."""
    from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions, pseudo_label

    supports = draw.folder("labelled", draw.labelled, masks=True)
    queries = draw.folder("queries", (*draw.unlabelled, *draw.tests), masks=False)
    output = draw.work_dir / "fewshot"
    options = PseudoLabelOptions(supports, queries, output, sam2="compact", resume=True)
    if pseudo_label(options).interrupted:
        sys.exit("stopped; run the same command again to go on")
    return output


def fewshot_masks(draw: Draw) -> dict[str, Path]:
    """Return where the few-shot branch writes the mask of each case."""
    from sslmedsam2.contract.labelled import find_labelled_series
    from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
    from sslmedsam2.contract.studies import find_queries

    folder = fewshot_folder(draw)
    labelled = find_labelled_series(draw.work_dir / "labelled")
    queries = find_queries(draw.work_dir / "queries", labelled=labelled).series
    return {q.path.parent.name: pseudo_label_paths(folder, q).mask for q in queries}


def fewshot(draw: Draw) -> dict[str, Any]:
    """(b): score the few-shot branch; on the unlabelled volumes too."""
    masks = fewshot_masks(draw)
    return {**scored(masks, draw.tests), "unlabelled": scored(masks, draw.unlabelled)}


def predicted_name(case: Path) -> str:
    """Return the name of a predicted mask of the case."""
    return image_of(case).name.replace(".nii.gz", "_pred.nii.gz")


def retrain_options(draw: Draw, *, work_dir: Path, **more: Any) -> Any:
    """Return what `retrain` is asked to do; the masks of the few-shot branch are there already."""
    from sslmedsam2.retrain.state import RetrainOptions, WorkDir

    pseudo_labels = WorkDir(work_dir).pseudo_labels
    if not pseudo_labels.is_dir():
        shutil.copytree(fewshot_folder(draw), pseudo_labels)
    return RetrainOptions(
        draw.folder("labelled", draw.labelled, masks=True),
        draw.folder("unlabelled", draw.unlabelled, masks=False),
        work_dir,
        folds=2,
        preset=preset(draw),
        **more,
    )


def online(draw: Draw, *, arm: str, work_dir: Path) -> Path:
    """(c): train as ``retrain --method online`` does, one network on all volumes."""
    from sslmedsam2.contract.labelled import find_labelled_series
    from sslmedsam2.contract.studies import find_queries
    from sslmedsam2.nnunet.training import preprocessed_dir
    from sslmedsam2.retrain.index import Index
    from sslmedsam2.retrain.select import fewshot_labels, select
    from sslmedsam2.retrain.state import WorkDir
    from sslmedsam2.retrain.train_round import online_settings, prepare_training

    options, work = retrain_options(draw, work_dir=work_dir, method="online"), WorkDir(work_dir)
    images = find_labelled_series(options.labelled_dir)
    queries = find_queries(options.unlabelled_dir, labelled=images).series
    index = Index(tuple(images), tuple(queries), (), None)
    round_dir = work.round(1)
    if not preprocessed_dir(round_dir.path).is_dir():
        labels = fewshot_labels(work, index.queries)
        pseudo = select(round_dir, labels, options=options)
        prepare_training(round_dir, index, pseudo=pseudo, options=options)
    how = replace(online_settings(index), **VARIANTS[arm])
    return trained(round_dir.path, replace(settings(draw), online=how))


def commanded(draw: Draw, method: str, rounds: int) -> Path:
    """Run `retrain` by one of its methods; returns the model folder that it freezes."""
    from sslmedsam2.retrain.pipeline import retrain
    from sslmedsam2.retrain.stopping import StoppingRule

    work_dir = draw.work_dir / method
    options = retrain_options(
        draw,
        work_dir=work_dir,
        weights_dir=work_dir / "weights",
        method=method,
        rule=StoppingRule(most_rounds=rounds, fixed=True),
        epochs=draw.iterations // ITERATIONS_PER_EPOCH // COMMANDS[method][1],
        iterations_per_epoch=ITERATIONS_PER_EPOCH,
        contrast_probability=draw.proof.contrast_probability,
        device="cpu",
        force=True,
        seed=draw.seed,
    )
    model = retrain(options).model
    if model is None:
        sys.exit("stopped; run the same command again to go on")
    return work_dir / "weights" / model.name


def published(draw: Draw) -> dict[str, Any]:
    """(p): three rounds on all hard masks; each goes on from the network before and relabels."""
    from sslmedsam2.contract.labelled import find_labelled_series
    from sslmedsam2.contract.studies import find_queries
    from sslmedsam2.nnunet.dataset import build_dataset, make_plans
    from sslmedsam2.nnunet.training import preprocessed_dir

    images = find_labelled_series(draw.folder("labelled", draw.labelled, masks=True))
    unlabelled = draw.folder("unlabelled", draw.unlabelled, masks=False)
    queries = find_queries(unlabelled, labelled=images).series
    plans = make_plans(images, preset(draw))
    masks, start, rounds = fewshot_masks(draw), None, []
    for number in range(1, PUBLISHED_ROUNDS + 1):
        work_dir = draw.work_dir / "p" / f"round_{number}"
        pseudo = [
            replace(query, mask=masks[query.path.parent.name], pseudo=True) for query in queries
        ]
        build_dataset(
            [*images, *pseudo],
            preprocessed_dir=preprocessed_dir(work_dir),
            preset=preset(draw),
            plans=plans,
        )
        model = trained(work_dir, settings(draw, share=1 / PUBLISHED_ROUNDS), start=start)
        start = model / "fold_all" / "checkpoint_final.pth"
        masks = segmented(model, draw.unlabelled, work_dir / "relabelled")
        rounds.append(tested(model, draw, f"p_{number}"))
    return {**rounds[-1], "rounds": rounds}


def tested(model: Path, draw: Draw, name: str) -> dict[str, Any]:
    """Segment the test volumes by a network and score the masks."""
    return scored(segmented(model, draw.tests, draw.work_dir / f"{name}_test"), draw.tests)


def segmented(model: Path, cases: Sequence[Path], output: Path) -> dict[str, Path]:
    """Segment volumes by a network as ``predict`` does; returns the masks by case."""
    from sslmedsam2.imaging.reading import read_volume
    from sslmedsam2.imaging.writing import write_mask
    from sslmedsam2.inference.masks import judge, make_ready
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

    spec = read_model_spec(model)
    segmenter = CanonicalSegmenter(spec, EngineOptions(device="cpu"))
    masks = {}
    for case in cases:
        ready = make_ready(read_volume(image_of(case)))
        found = segmenter.segment(ready.canonical)
        masks[case.name] = output / case.name / predicted_name(case)
        mask = judge(found.mask_zyx, ready, found).mask_zyx
        write_mask(mask, like=ready.volume, path=masks[case.name])
    return masks


def scored(masks: Mapping[str, Path], cases: Sequence[Path]) -> dict[str, Any]:
    """Compare masks with the reference masks; an empty mask's distances are the scan's diagonal."""
    from sslmedsam2.imaging.reading import read_mask
    from sslmedsam2.submission.metrics import diagonal_mm, measure

    rows = {}
    for case in cases:
        truth = read_mask(mask_of(case))
        spacing = truth.geometry.spacing_zyx_mm
        diagonal = diagonal_mm(truth.array_zyx.shape, spacing_zyx_mm=spacing)
        dice, distances = 0.0, [diagonal, diagonal]
        # The few-shot branch may have failed on it.
        found = read_mask(masks[case.name]).array_zyx if masks[case.name].is_file() else None
        if found is not None and found.any():
            metrics = measure(found, truth.array_zyx > 0, spacing_zyx_mm=spacing)
            dice, distances = metrics.dice, [metrics.hausdorff_mm, metrics.hausdorff95_mm]
        rows[case.name] = [round(dice, 4), *(round(d, 2) for d in distances)]
    means = [round(statistics.mean(column), 4) for column in zip(*rows.values(), strict=True)]
    return {"dice": means[0], "hd_mm": means[1], "hd95_mm": means[2], "cases": rows}


NAMES = {"a": "supervised_few", "b": "fewshot", "c": "ssl", "d": "supervised_all"}


def summary(work_dir: Path) -> dict[str, Any]:
    """Sum up what is done: means over draws and paired differences, by proof."""
    found = {}
    for name in PROOFS:
        paths = sorted((work_dir / name).glob("draw_*/figures.json"))
        draws = {path.parent.name: json.loads(path.read_text()) for path in paths}
        if draws:
            found[name] = {**means(draws), **gains(draws), "draws": draws}
    return found


def means(draws: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return each arm's means over the draws that have it."""
    arms = {arm: NAMES.get(arm, arm) for arm in ARMS}
    return {
        f"{name}_{metric}": round(statistics.mean(values), 4)
        for arm, name in arms.items()
        for metric in ("dice", "hd_mm", "hd95_mm")
        if (values := [draw[arm][metric] for draw in draws.values() if arm in draw])
    }


def gains(draws: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the paired gains of (c) over (a) in Dice, with their 95 % t intervals.

    Over the draws, and over the patients that were tested, each by its mean. Draws share patients,
    and patients share trainings, so that both intervals are narrower than those of new data.
    """
    both = [draw for draw in draws.values() if "a" in draw and "c" in draw]
    if not both:
        return {}
    of_patient: dict[str, list[float]] = defaultdict(list)
    for draw in both:
        for case, row in draw["c"]["cases"].items():
            of_patient[case].append(row[0] - draw["a"]["cases"][case][0])
    of_draws = [draw["c"]["dice"] - draw["a"]["dice"] for draw in both]
    return {
        "gain": round(statistics.mean(of_draws), 4),
        "gain_interval": interval(of_draws),
        "gain_interval_of_patients": interval([statistics.mean(g) for g in of_patient.values()]),
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the mean by Student's t; None for a single value."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return [round(mean - half, 4), round(mean + half, 4)]


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw Dice of the arms a to d, one panel a proof, one line a draw."""
    import matplotlib
    from matplotlib import pyplot as plt

    # nnU-Net's own plots leave huge letters behind.
    matplotlib.rcdefaults()
    matplotlib.use("Agg")
    figure, panels = plt.subplots(
        1, len(figures), figsize=(4 * len(figures), 4), sharey=True, squeeze=False
    )
    for (name, of_proof), axes in zip(figures.items(), panels[0], strict=True):
        for draw, found in of_proof["draws"].items():
            arms = [arm for arm in NAMES if arm in found]
            axes.plot(
                [NAMES[arm].replace("_", "\n") for arm in arms],
                [found[arm]["dice"] for arm in arms],
                "o-",
                label=draw.replace("_", " "),
            )
        axes.set_title(name.upper())
        axes.set_ylabel("Dice")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
