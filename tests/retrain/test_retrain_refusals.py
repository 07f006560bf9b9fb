"""What cannot work is said before anything long starts."""

import re
import shutil
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
import torch
from held_locks import held_elsewhere
from retrain_samples import LABELLED, UNLABELLED, options, write_labelled, write_unlabelled
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import (
    ExitCode,
    InputError,
    ModelError,
    NoInputError,
    SslMedSam2Error,
    UsageError,
)
from sslmedsam2.execution.units import duration
from sslmedsam2.nnunet.plans import PRESETS
from sslmedsam2.pseudo_label.supports import find_sam2
from sslmedsam2.retrain import estimate
from sslmedsam2.retrain import pipeline as retrain_pipeline
from sslmedsam2.retrain.index import index_data, read_index
from sslmedsam2.retrain.pipeline import retrain
from sslmedsam2.retrain.state import WorkDir


@pytest.fixture(autouse=True)
def _known_pace(monkeypatch):
    """Leave out the measurement of this CPU's pace, which takes longer than all else here."""
    monkeypatch.setattr(estimate, "measured_speedup", lambda: 1.0)


@pytest.fixture
def root(tmp_path):
    """Two labelled cases and one unlabelled: the least that works."""
    for seed, case in enumerate(LABELLED[:2], start=1):
        write_labelled(tmp_path / "labelled" / case, seed=seed)
    write_unlabelled(tmp_path / "unlabelled" / UNLABELLED[0], seed=11)
    return tmp_path


def _refused(error, match, asked):
    """Check that ``retrain`` refuses, and that nothing was begun."""
    with pytest.raises(error, match=match) as caught:
        retrain(asked)
    left = [path for path in asked.work_dir.rglob("*") if path.is_file()]
    assert not left
    return caught.value


def test_least_that_works_is_indexed(root):
    index = index_data(options(root))

    assert [image.case for image in index.labelled] == list(LABELLED[:2])
    assert [query.name for query in index.queries] == [f"{UNLABELLED[0]}/T2"]
    assert index.problems == ()
    assert read_index(WorkDir(root / "work")) == index


def test_no_labels(root):
    for mask in root.rglob("mask_T2.nii.gz"):
        mask.unlink()

    error = _refused(NoInputError, "labelled: there is no labelled image", options(root))
    assert error.exit_code == ExitCode.NO_VALID_INPUT


def test_labels_of_no_wanted_sequence(root):
    asked = options(root, sequences=("T1",))

    _refused(NoInputError, "there is no labelled image of these sequences", asked)


def test_folder_that_is_not_there(root):
    _refused(NoInputError, "no such folder", options(root, labelled_dir=root / "nowhere"))
    _refused(NoInputError, "nowhere", options(root, unlabelled_dir=root / "nowhere"))


def test_one_labelled_patient_whose_name_is_spelled_in_two_ways(root):
    other = root / "labelled" / LABELLED[0].lower()
    (root / "labelled" / LABELLED[1]).rename(other)
    for path in list(other.iterdir()):
        path.rename(other / path.name.replace("T2", "T1"))

    _refused(UsageError, r"1 labelled patient\(s\) are too few for 2 folds", options(root))


def test_one_labelled_case(root):
    shutil.rmtree(root / "labelled" / LABELLED[1])

    error = _refused(UsageError, r"1 labelled patient\(s\) are too few for 2 folds", options(root))
    assert error.exit_code == ExitCode.USAGE
    assert "Label a second patient" in error.remedy


def test_more_folds_than_labelled_patients(root):
    write_labelled(root / "labelled" / LABELLED[0], sequence="GED4", seed=3)

    error = _refused(UsageError, r"2 labelled patient\(s\) are too few", options(root, folds=3))
    assert "--folds 2" in error.remedy


def test_one_fold(root):
    _refused(UsageError, "--folds 1: a volume can only be re-predicted", options(root, folds=1))


def test_mask_of_another_shape(root):
    mask = root / "labelled" / LABELLED[1] / "mask_T2.nii.gz"
    write_scan(mask, small_abdomen(2)[1][:-1], dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)

    error = _refused(
        InputError, rf"{LABELLED[1]}.mask_T2\.nii\.gz: the mask has shape", options(root)
    )
    assert error.kind == "shape_mismatch"


def _mask_flipped_against_its_image(path, *, seed):
    mask = small_abdomen(seed)[1]
    flipped = SMALL_AFFINE_RAS.copy()
    flipped[:3, 3] += flipped[:3, 1] * (mask.shape[1] - 1)
    flipped[:3, 1] *= -1
    write_scan(path, mask[:, ::-1], dtype=np.uint8, affine_ras=flipped)


def _mask_of_several_organs(path, *, seed):
    organs = small_abdomen(seed)[1].astype(np.uint8) * 63
    organs[0, :5] = 252
    write_scan(path, organs, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)


def test_mask_flipped_against_its_image(root):
    _mask_flipped_against_its_image(root / "labelled" / LABELLED[1] / "mask_T2.nii.gz", seed=2)

    error = _refused(InputError, rf"{LABELLED[1]}.mask_T2\.nii\.gz: the mask lies", options(root))
    assert error.kind == "grid_mismatch"


def test_mask_of_several_organs_needs_a_label(root):
    for seed, case in enumerate(LABELLED[:2], start=1):
        _mask_of_several_organs(root / "labelled" / case / "mask_T2.nii.gz", seed=seed)

    error = _refused(InputError, r"more than two values \(0, 63, 252\).*--label", options(root))
    assert error.kind == "not_a_mask"
    index = index_data(options(root, label=63))
    assert {image.label for image in index.labelled} == {63}
    assert read_index(WorkDir(root / "work")) == index
    with pytest.raises(UsageError, match="other options \\(label\\)"):
        index_data(options(root, label=252))


def test_all_labelled_images_that_cannot_be_used_are_named_at_once(root, caplog):
    for seed, case in enumerate(LABELLED[:2], start=1):
        _mask_of_several_organs(root / "labelled" / case / "mask_T2.nii.gz", seed=seed)

    error = _refused(InputError, "more than two values", options(root))
    assert all(f"{case}/mask_T2.nii.gz" in f"{error}{caplog.text}" for case in LABELLED[:2])


@pytest.mark.parametrize("sequences", [None, ("T2",)])
def test_supports_are_the_images_that_train(root, monkeypatch, sequences):
    write_labelled(root / "labelled" / LABELLED[0], sequence="GED4", seed=3)
    given = []

    def stop_here(_, *, supports, **_others):
        given.extend(supports)
        raise KeyboardInterrupt

    monkeypatch.setattr(retrain_pipeline, "pseudo_label", stop_here)
    asked = options(root, sequences=sequences)
    with pytest.raises(KeyboardInterrupt):
        retrain(asked)

    assert tuple(given) == read_index(WorkDir(root / "work")).labelled
    assert {image.sequence for image in given} == ({"T2"} if sequences else {"GED4", "T2"})


def test_empty_reference_mask(root):
    mask = root / "labelled" / LABELLED[1] / "mask_T2.nii.gz"
    empty = np.zeros(small_abdomen(2)[1].shape)
    write_scan(mask, empty, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)

    _refused(InputError, r"mask_T2\.nii\.gz: the mask holds no liver", options(root))


def test_labelled_image_that_cannot_be_read(root):
    image = root / "labelled" / LABELLED[0] / "T2.nii.gz"
    image.write_bytes(image.read_bytes()[:200])

    _refused(InputError, rf"{LABELLED[0]}.T2\.nii\.gz", options(root))


def test_empty_unlabelled_folder(root):
    shutil.rmtree(root / "unlabelled")
    (root / "unlabelled").mkdir()

    error = _refused(NoInputError, "unlabelled", options(root))
    assert error.exit_code == ExitCode.NO_VALID_INPUT


def test_unlabelled_folder_of_labelled_images_alone(root):
    asked = options(root, unlabelled_dir=root / "labelled")

    _refused(NoInputError, "there is no unlabelled image", asked)


@pytest.mark.parametrize("folder", ["labelled", "unlabelled"])
def test_work_directory_inside_the_data(root, folder):
    asked = options(root, work_dir=root / folder / "work")
    before = sorted(root.rglob("*"))

    with pytest.raises(UsageError, match=f"the work directory lies inside .*{folder}"):
        retrain(asked)
    assert sorted(root.rglob("*")) == before


def test_disk_too_small(root, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))

    _refused(UsageError, r"up to \d MB are needed and 0 MB are free", options(root))


def test_more_gpus_than_there_are(root):
    _refused(UsageError, "--gpus 2: 0 can be used", options(root, gpus=2))


def test_gpu_that_is_not_there(root, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    _refused(UsageError, "--device cuda", options(root, device="cuda"))


@pytest.mark.parametrize("name", ["resenc-m", "resenc-l"])
def test_disk_is_judged_by_the_voxels_that_the_preset_plans(root, monkeypatch, name):
    usage = namedtuple("usage", "total used free")
    free = {"bytes": 10**15}
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, free["bytes"]))
    index_data(options(root, work_dir=root / "roomy", preset=PRESETS[name]))

    # At 6 x 3 x 3 mm a voxel of these scans would be cut into many.
    free["bytes"] = 2 * 10**6
    index_data(options(root, work_dir=root / "coarse", preset=PRESETS[name]))
    fine = options(root, work_dir=root / "fine", preset=PRESETS["compact"])
    with pytest.raises(UsageError, match="B are needed"):
        index_data(fine)


def test_unknown_sequence(root, capsys):
    arguments = ["--labelled", str(root / "labelled"), "--unlabelled", str(root / "unlabelled")]
    code = main(["retrain", *arguments, "--work-dir", str(root / "work"), "--sequences", "T7"])

    assert code == ExitCode.USAGE
    assert "T7" in capsys.readouterr().err
    assert not (root / "work").exists()


@pytest.mark.parametrize("rounds", ["0", "many", "-1", "1.5"])
def test_rounds_that_are_no_number(root, capsys, rounds):
    arguments = ["--labelled", str(root / "labelled"), "--unlabelled", str(root / "unlabelled")]
    code = main(["retrain", *arguments, "--work-dir", str(root / "work"), "--rounds", rounds])

    assert code == ExitCode.USAGE
    assert f"--rounds {rounds}" in capsys.readouterr().err


def test_mean_of_weights_without_a_common_start(root):
    _refused(UsageError, "--final average: without a common start", options(root, final="average"))


def test_start_that_is_no_checkpoint(root):
    (root / "start.pth").write_bytes(b"nothing")

    _refused(ModelError, r"start\.pth", options(root, start=root / "start.pth"))


def test_sam2_that_is_not_there(root):
    with pytest.raises(SslMedSam2Error, match="nowhere"):
        retrain(options(root, sam2=str(root / "nowhere.safetensors")))
    assert not (root / "work" / "round_1").exists()


def test_unlabelled_image_that_cannot_be_read_is_left_out_and_named(root):
    write_unlabelled(root / "unlabelled" / UNLABELLED[1], seed=12)
    broken = root / "unlabelled" / UNLABELLED[0] / "T2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])

    index = index_data(options(root))
    assert [query.case for query in index.queries] == [UNLABELLED[1]]
    (problem,) = index.problems
    assert str(broken) in problem


def test_copy_of_a_labelled_image_is_left_out(root):
    folder = root / "unlabelled" / LABELLED[0]
    folder.mkdir()
    shutil.copy(root / "labelled" / LABELLED[0] / "T2.nii.gz", folder)

    index = index_data(options(root))
    assert [query.case for query in index.queries] == [UNLABELLED[0]]
    assert index.problems == ()


def test_unlabelled_image_that_is_called_like_a_labelled_one_is_left_out_and_named(root):
    path = write_unlabelled(root / "unlabelled" / LABELLED[0], seed=77)

    index = index_data(options(root))
    assert [query.case for query in index.queries] == [UNLABELLED[0]]
    (problem,) = index.problems
    assert problem.startswith(f"{path}: is left out, since ")


def test_images_may_lie_elsewhere_on_the_next_call(root, tmp_path):
    before = index_data(options(root))
    shutil.move(root / "labelled", root / "moved")

    after = index_data(options(root, labelled_dir=root / "moved"))
    assert after.queries == before.queries
    assert {image.path.parents[1] for image in after.labelled} == {root / "moved"}
    assert read_index(WorkDir(tmp_path / "work")) == after


def test_sam2_may_lie_elsewhere_on_the_next_call_and_no_other_one_in_its_place(root):
    before = index_data(options(root))
    moved = root / "moved.safetensors"
    shutil.copy(find_sam2("compact"), moved)

    assert index_data(options(root, sam2=str(moved))) == before

    moved.write_bytes(b"another one")
    with pytest.raises(UsageError, match="another --start or --sam2"):
        index_data(options(root, sam2=str(moved)))


def test_labelled_image_of_the_wrong_kind_is_named(root):
    flat = root / "labelled" / LABELLED[0] / "T2.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 9, 3)), np.eye(4)), flat)

    _refused(InputError, rf"{LABELLED[0]}.T2\.nii\.gz", options(root))


def test_estimate_counts_labelling_and_calibration_and_is_in_minutes_or_hours(root, caplog):
    caplog.set_level("INFO")
    index_data(options(root, preset=PRESETS["compact"], epochs=30, iterations_per_epoch=50))

    (line,) = [text for text in caplog.messages if "present pace of the CPU" in text]
    wanted = r"estimate, .*: 1 min to label 1 scan\(s\) and to calibrate on 2, then "
    then = r"(10|3\d) min for each round; number of rounds at most 2"
    assert re.fullmatch(wanted + then, line), line


def test_estimate_follows_the_pace_that_was_measured(root, caplog, monkeypatch):
    monkeypatch.setattr(estimate, "measured_speedup", lambda: 0.05)
    caplog.set_level("INFO")
    index_data(options(root, preset=PRESETS["compact"], epochs=30, iterations_per_epoch=50))

    (line,) = [text for text in caplog.messages if "present pace of the CPU" in text]
    assert re.search(r"then (3|1\d)\.\d h for each round", line), line


@pytest.mark.parametrize(
    ("seconds", "words"), [(4, "1 min"), (327, "5 min"), (5390, "90 min"), (9000, "2.5 h")]
)
def test_durations_are_in_minutes_or_hours(seconds, words):
    assert duration(seconds) == words


def test_work_directory_of_another_run(root):
    with (
        held_elsewhere(root / "work"),
        pytest.raises(UsageError, match="another process is writing there"),
    ):
        retrain(options(root))
