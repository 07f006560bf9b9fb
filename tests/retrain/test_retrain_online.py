"""``retrain --method online``: one training from reference masks and unlabelled images."""

import json

import numpy as np
import pytest
import torch
from retrain_samples import LABELLED, UNLABELLED, options, read, write_labelled, write_unlabelled
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.nnunet.trainer import LiverTrainer
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.pipeline import plan, retrain
from sslmedsam2.retrain.select import Candidate, choose_online
from sslmedsam2.retrain.stopping import StoppingRule
from sslmedsam2.retrain.train_round import online_settings
from sslmedsam2.weights.locate import locate_models

pytestmark = pytest.mark.usefixtures("one_thread", "no_progress_png")

CORRECTED, REJECTED = UNLABELLED[:2]


@pytest.fixture(scope="module")
def done(tmp_path_factory, small_sam2):
    """The options, the summary and the patches of a run with a corrected and a rejected mask."""
    root = tmp_path_factory.mktemp("online")
    for seed, case in enumerate(LABELLED[:2], start=1):
        write_labelled(root / "labelled" / case, seed=seed)
    for seed, case in enumerate((CORRECTED, REJECTED), start=11):
        write_unlabelled(root / "unlabelled" / case, seed=seed)
    asked = options(
        root,
        sam2=str(small_sam2),
        method="online",
        rule=StoppingRule(most_rounds=1, fixed=True),
        epochs=2,
        iterations_per_epoch=2,
    )
    assert plan(asked, StopRequest()) is not None
    corrected = asked.work_dir / "pseudo_labels" / CORRECTED / "T2_pred.nii.gz"
    write_scan(corrected, small_abdomen(11)[1], dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)
    record = asked.work_dir / "pseudo_labels" / REJECTED / "T2_pseudo.json"
    record.write_text(json.dumps({**read(record), "verdict": "reject"}))
    batches, step = [], LiverTrainer.train_step

    def noting(self, batch):
        batches.append((self.fold, batch))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiverTrainer, "train_step", noting)
        return asked, retrain(asked), batches


def test_one_training_of_each_fold_ends_with_a_frozen_model(done):
    asked, summary, _ = done

    assert summary.exit_code == ExitCode.OK
    (figures,) = summary.rounds
    assert summary.decision.stop
    assert (figures.trained, figures.failed) == (2, 0)
    (model,) = locate_models(asked.weights_dir)
    assert "--method online: 2 labelled and 2 unlabelled images" in model.card.recipe
    checkpoint = (asked.work_dir / "round_1").rglob("fold_0/checkpoint_final.pth")
    assert torch.load(next(checkpoint), weights_only=False)["current_epoch"] == 2


def test_rejected_image_is_learned_from_without_its_mask_and_a_correction_as_a_reference(done):
    asked, _, batches = done
    choices = {
        one["name"]: one for one in read(asked.work_dir / "round_1" / "selection.json")["choices"]
    }
    cases = read(next((asked.work_dir / "round_1").rglob("unlabelled.json")))

    assert choices[f"{REJECTED}/T2"]["fewshot_weight"] == 0
    assert choices[f"{CORRECTED}/T2"]["fewshot_weight"] is None
    assert {key: case["fewshot_weight"] for key, case in cases.items()} == {f"{REJECTED}__T2": 0}
    assert cases[f"{REJECTED}__T2"]["yields_above"] is not None
    unlabelled = {key for _, batch in batches for key in batch.get("unlabelled_keys", ())}
    assert unlabelled == {f"{REJECTED}__T2"}
    assert REJECTED not in {key.split("__")[0] for _, batch in batches for key in batch["keys"]}


def test_no_fold_learns_from_a_patient_that_it_relabels(done):
    asked, _, batches = done
    for case in (CORRECTED, REJECTED):
        record = read(asked.work_dir / "round_1" / "relabelled" / case / "T2_pseudo.json")
        assert record["trained"]
        (fold,) = record["folds"]
        seen = {
            key
            for of_fold, batch in batches
            if of_fold == fold
            for key in (*batch["keys"], *batch.get("unlabelled_keys", ()))
        }
        assert f"{case}__T2" not in seen


def test_mask_counts_by_its_estimated_dice_unless_it_is_rejected():
    candidates = [
        Candidate("a", "accept", estimated_dice=0.9),
        Candidate("b", "doubtful", estimated_dice=0.6),
        Candidate("c", "reject", estimated_dice=0.5),
        Candidate("d", "doubtful"),
        Candidate("e", "reject", estimated_dice=0.5, manually_corrected=True),
        Candidate("f", "accept", estimated_dice=0.9, has_liver=False),
        Candidate("g", None),
    ]
    choices = [choose_online(one) for one in candidates]

    assert {one.name: one.fewshot_weight for one in choices if one.trains} == {
        **{"a": 0.9, "b": 0.6},
        **{"c": 0.0, "d": 0.0, "e": None},
    }


@pytest.mark.parametrize(
    ("sequence", "finish", "last_of_fewshot"),
    [("T2", 0.12, 0.0), ("T1", 0.0, 1.0), (None, 0.0, 1.0)],
)
def test_training_ends_on_reference_masks_or_keeps_fewshot_masks_of_other_sequences(
    tmp_path, sequence, finish, last_of_fewshot
):
    labelled = ImageFile(case="a", sequence="T2", path=tmp_path / "a")
    query = ImageFile(case="b", sequence=sequence, path=tmp_path / "b")

    settings = online_settings(Index((labelled,), (query,), (), None))

    assert settings.finish == finish
    assert settings.fewshot_share(0.2) > 0.7
    assert settings.fewshot_share(0.99) == last_of_fewshot


def test_rounds_of_an_online_training_are_refused(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    folders = [f"--{kind}={tmp_path / 'data'}" for kind in ("labelled", "unlabelled")]
    command = ["retrain", *folders, f"--work-dir={tmp_path / 'work'}", "--method=online"]

    assert main([*command, "--rounds=2"]) == ExitCode.USAGE
    assert "--rounds 2: --method online is a single training" in capsys.readouterr().err
