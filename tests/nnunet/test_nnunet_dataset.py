import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest
from tiny_scans import abdomen, write_scan
from tiny_training import PRESET, SPLEEN, write_labelled_case, write_labelled_cases

from sslmedsam2.errors import InputError, OutputError, UsageError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.nnunet import dataset
from sslmedsam2.nnunet.dataset import (
    Sampling,
    alternating_splits,
    build_dataset,
    case_key,
    load_labelled,
    make_plans,
    read_sampling,
    split_cases,
    write_sampling,
    write_splits,
)
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, IGNORE, LIVER, TRAINED_LABELS_WITH_IGNORE


@pytest.mark.parametrize(
    ("flips_zyx", "codes"), [((), "LPS"), ((1,), "LAS"), ((1, 2), "RAS"), ((0, 1, 2), "RAI")]
)
def test_orientation_of_the_file_does_not_show(tmp_path, flips_zyx, codes):
    twin = write_labelled_case(tmp_path / "twin", flips_zyx=flips_zyx, with_organs=True)
    assert "".join(nib.aff2axcodes(nib.load(twin.path).affine)) == codes

    loaded = load_labelled(twin)
    image, liver = abdomen(seed=0)
    assert np.array_equal(loaded.image_zyx, np.rint(image))
    assert np.array_equal(loaded.labels_zyx == LIVER, liver == 1)
    assert loaded.spacing_zyx_mm == pytest.approx((7, 4, 4))


def test_other_organs_are_stored_above_the_offset(tmp_path):
    labels = load_labelled(write_labelled_case(tmp_path / "c", with_organs=True)).labels_zyx

    assert set(np.unique(labels)) == {0, LIVER, AUXILIARY_OFFSET + SPLEEN}
    assert labels[12, 35, 60] == AUXILIARY_OFFSET + SPLEEN


def test_reference_mask_wins_over_the_map_of_organs(tmp_path):
    case = write_labelled_case(tmp_path / "c", with_organs=True)
    everything = np.full(abdomen()[0].shape, SPLEEN)
    write_scan(case.organs, everything, dtype=np.uint8)

    labels = load_labelled(case).labels_zyx
    assert np.array_equal(labels == LIVER, abdomen()[1] == 1)
    assert (labels[labels != LIVER] == AUXILIARY_OFFSET + SPLEEN).all()


def test_empty_mask_is_named(tmp_path):
    case = write_labelled_case(tmp_path / "c")
    write_scan(case.mask, np.zeros(abdomen()[0].shape), dtype=np.uint8)

    with pytest.raises(InputError, match=r"mask_T2\.nii\.gz: the mask holds no liver") as error:
        load_labelled(case)
    assert error.value.kind == "empty_mask"


@pytest.mark.parametrize("label", ["mask", "organs"])
def test_label_of_another_shape_is_named(tmp_path, label):
    case = write_labelled_case(tmp_path / "c", with_organs=True)
    path = tmp_path / "c" / f"{label}_T2.nii.gz"
    write_scan(path, abdomen()[1][:-1], dtype=np.uint8)

    with pytest.raises(InputError, match=rf"{label}_T2\.nii\.gz: the mask has shape") as error:
        load_labelled(case)
    assert error.value.kind == "shape_mismatch"


def test_no_image_is_too_few(tmp_path):
    with pytest.raises(UsageError, match="no labelled image found"):
        build_dataset([], preprocessed_dir=tmp_path / "p", preset=PRESET)
    assert not (tmp_path / "p").exists()


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    images = [
        write_labelled_case(root / "data" / "one", seed=1, with_organs=True),
        write_labelled_case(root / "data" / "two", seed=2),
    ]
    folder = build_dataset(images, preprocessed_dir=root / "p", preset=PRESET)
    return root, images, folder


@pytest.fixture
def built(built_once, tmp_path):
    """Images of two cases, and the data set made from them."""
    root, images, folder = built_once
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)

    def here(path):
        return None if path is None else tmp_path / path.relative_to(root)

    images = [
        replace(one, path=here(one.path), mask=here(one.mask), organs=here(one.organs))
        for one in images
    ]
    return images, here(folder)


def _content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def test_nnunet_reads_the_cases_on_the_planned_grid(built):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    images, folder = built
    data_folder = str(folder / "nnUNetPlans_3d_fullres")
    dataset = infer_dataset_class(data_folder)(data_folder)
    assert sorted(dataset.identifiers) == ["one__T2", "two__T2"]

    data, labels, _, properties = dataset.load_case("one__T2")
    assert data.shape == labels.shape == (1, 13, 35, 40)
    assert abs(np.asarray(data[:]).mean()) < 0.1
    assert set(np.unique(labels[:])) >= {0, LIVER, AUXILIARY_OFFSET + SPLEEN}
    assert len(properties["class_locations"][LIVER]) > 0
    meta = json.loads((folder / "dataset.json").read_text())
    assert meta["labels"] == {"background": 0, "liver": 1}
    assert meta["numTraining"] == len(images)


def test_finished_data_set_is_kept(built, tmp_path):
    images, folder = built
    before = _content(folder)

    assert build_dataset(images, preprocessed_dir=tmp_path / "p", preset=PRESET) == folder
    assert _content(folder) == before


@pytest.mark.parametrize("end", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 20)])
def test_a_damaged_preprocessed_image_is_made_again(built, tmp_path, end, damage):
    images, folder = built
    path = folder / "nnUNetPlans_3d_fullres" / f"two__T2{end}"
    whole = _stored(path)
    damage(path)

    build_dataset(images, preprocessed_dir=tmp_path / "p", preset=PRESET)

    assert _stored(path) == whole


def _stored(path):
    # The bytes of a compressed array depend on how its threads took turns.
    return path.read_bytes() if path.suffix == ".pkl" else blosc2.open(path)[:].tobytes()


def test_data_set_that_this_program_did_not_make_is_renamed_and_not_trained_on(built, tmp_path):
    images, folder = built
    (folder / "inputs.json").unlink()
    before = _content(folder)
    third = write_labelled_case(tmp_path / "data" / "three", seed=3)

    build_dataset([images[1], third], preprocessed_dir=tmp_path / "p", preset=PRESET)
    (renamed,) = folder.parent.glob(f"{folder.name}.replaced-*")
    assert _content(renamed) == before
    names = {path.name.split(".")[0] for path in (folder / "nnUNetPlans_3d_fullres").iterdir()}
    assert {name.removesuffix("_seg") for name in names} == {"two__T2", "three__T2"}


def test_first_of_two_that_build_together_provides_for_both(tmp_path, monkeypatch):
    images = write_labelled_cases(tmp_path / "data", count=2)
    write_cases = dataset._write_cases
    first = []

    def meanwhile(folder, *args, **kwargs):
        write_cases(folder, *args, **kwargs)
        monkeypatch.setattr(dataset, "_write_cases", write_cases)
        done = build_dataset(images, preprocessed_dir=tmp_path / "p", preset=PRESET)
        first.append(_content(done))

    monkeypatch.setattr(dataset, "_write_cases", meanwhile)
    folder = build_dataset(images, preprocessed_dir=tmp_path / "p", preset=PRESET)

    assert first == [_content(folder)]
    assert [path.name for path in (tmp_path / "p").iterdir()] == [folder.name]


@pytest.mark.parametrize(("age_hours", "stays"), [(0, True), (2, False)])
def test_what_a_killed_process_left_is_removed_but_not_what_another_builds(
    built, tmp_path, age_hours, stays
):
    images, folder = built
    half_built = tmp_path / "p" / ".building_x" / folder.name / "nnUNetPlans_3d_fullres"
    half_built.mkdir(parents=True)
    written = time.time() - 3600 * age_hours
    for path in (half_built, half_built.parent, half_built.parents[1]):
        os.utime(path, (written, written))
    (folder / "inputs.json").unlink()

    build_dataset(images, preprocessed_dir=tmp_path / "p", preset=PRESET)
    assert half_built.exists() == stays


@pytest.mark.parametrize("change", ["mask", "preset", "cases"])
def test_data_set_of_other_inputs_is_refused_and_left_alone(built, tmp_path, change):
    images, folder = built
    preset = PRESET
    if change == "mask":
        write_scan(images[0].mask, np.roll(abdomen()[1], 2, axis=2), dtype=np.uint8)
    elif change == "preset":
        preset = replace(PRESET, patch_zyx=(8, 24, 24))
    else:
        images = [*images, write_labelled_case(tmp_path / "data" / "three", seed=3)]
    before = _content(folder)

    with pytest.raises(UsageError, match="other images, masks or settings"):
        build_dataset(images, preprocessed_dir=tmp_path / "p", preset=preset)
    assert _content(folder) == before


def _image(case, sequence="T2"):
    return ImageFile(case=case, sequence=sequence, path=Path("image.nii.gz"))


def test_every_image_is_validated_once_and_never_trained_on_in_that_fold():
    images = [_image(f"c{n}") for n in range(7)]
    splits = alternating_splits(images, n_folds=3)

    validated = [key for split in splits for key in split["val"]]
    assert sorted(validated) == sorted(case_key(image) for image in images)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(validated)
        assert len(split["val"]) in (2, 3)


def test_sequences_of_a_patient_stay_on_one_side():
    images = [_image(case, sequence) for case in "abcd" for sequence in ("T1", "T2", "GED4")]

    for split in alternating_splits(images, n_folds=2):
        trained = {key.split("__")[0] for key in split["train"]}
        validated = {key.split("__")[0] for key in split["val"]}
        assert trained
        assert validated
        assert not trained & validated


def test_a_patient_whose_name_is_spelled_in_two_ways_stays_on_one_side():
    images = [_image("P1", "T1"), _image("p1", "T2"), _image("p2"), _image("p3")]

    for split in alternating_splits(images, n_folds=2, identity=str.casefold):
        assert len(split["train"]) + len(split["val"]) == 4
        assert ("P1__T1" in split["val"]) == ("p1__T2" in split["val"])
    # Capitals come first, as in earlier versions.
    images = [_image(name) for name in ("a2", "B1", "c3")]
    first, second = alternating_splits(images, n_folds=2, identity=str.casefold)
    assert (first["val"], second["val"]) == (["B1__T2", "c3__T2"], ["a2__T2"])


def test_other_folds_in_the_same_place_are_refused(tmp_path):
    images = write_labelled_cases(tmp_path / "data", count=4)
    two, three = (alternating_splits(images, n_folds=n) for n in (2, 3))
    write_splits(tmp_path, two)
    write_splits(tmp_path, two)

    with pytest.raises(UsageError, match="other folds"):
        write_splits(tmp_path, three)
    assert json.loads((tmp_path / "splits_final.json").read_text()) == two


def _pseudo(folder, *, seed):
    """Write a case whose mask is a map of trained labels: liver, a seam to ignore, background."""
    case = write_labelled_case(folder, seed=seed, flips_zyx=(1,))
    labels = abdomen(seed=seed)[1].copy()
    labels[10:14, 20:50, 20:30] = IGNORE
    flipped = nib.load(case.mask).affine
    write_scan(case.mask, labels[:, ::-1], dtype=np.uint8, affine_ras=flipped)
    return replace(case, pseudo=True), labels


def test_labels_of_a_pseudo_image_are_kept_and_refused_in_a_reference_mask(tmp_path):
    pseudo, labels = _pseudo(tmp_path / "c", seed=1)

    assert np.array_equal(load_labelled(pseudo).labels_zyx, labels)
    with pytest.raises(InputError, match="more than two values"):
        load_labelled(replace(pseudo, pseudo=False))
    chosen = load_labelled(replace(pseudo, pseudo=False, label=LIVER)).labels_zyx
    assert np.array_equal(chosen, labels == LIVER)


@pytest.mark.parametrize("role", ["mask", "organs"])
def test_label_that_is_flipped_against_its_image_is_refused(tmp_path, role):
    case = write_labelled_case(tmp_path / "c", with_organs=True)
    path = case.files[role]
    flipped = write_labelled_case(tmp_path / "flipped", flips_zyx=(1, 2), with_organs=True)
    path.write_bytes(flipped.files[role].read_bytes())

    with pytest.raises(InputError, match=rf"{path.name}: the mask lies on another grid"):
        load_labelled(case)


def test_map_of_more_organs_than_are_trained_is_refused(tmp_path):
    case = write_labelled_case(tmp_path / "c", with_organs=True)
    write_scan(case.organs, abdomen()[1] * 63, dtype=np.uint8)

    with pytest.raises(InputError, match=r"organs_T2\.nii\.gz: a voxel is not a whole number"):
        load_labelled(case)


def test_label_decides_with_the_files(built, tmp_path):
    images, _ = built

    with pytest.raises(UsageError, match="other images, masks or settings"):
        build_dataset(
            [replace(image, label=1) for image in images],
            preprocessed_dir=tmp_path / "p",
            preset=PRESET,
        )


def test_pseudo_image_that_is_ignored_altogether_is_refused(tmp_path):
    pseudo, labels = _pseudo(tmp_path / "c", seed=1)
    affine = nib.load(pseudo.mask).affine
    write_scan(pseudo.mask, np.full_like(labels, IGNORE), dtype=np.uint8, affine_ras=affine)

    with pytest.raises(InputError, match="holds no liver"):
        load_labelled(pseudo)


def test_ignore_label_reaches_nnunet_and_its_loss(tmp_path):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    images = [write_labelled_case(tmp_path / "one", seed=1), _pseudo(tmp_path / "two", seed=2)[0]]
    folder = build_dataset(
        images, preprocessed_dir=tmp_path / "p", preset=PRESET, labels=TRAINED_LABELS_WITH_IGNORE
    )

    data_folder = str(folder / "nnUNetPlans_3d_fullres")
    dataset = infer_dataset_class(data_folder)(data_folder)
    assert set(np.unique(dataset.load_case("one__T2")[1][:])) == {0, LIVER}
    assert set(np.unique(dataset.load_case("two__T2")[1][:])) == {0, LIVER, IGNORE}
    meta = json.loads((folder / "dataset.json").read_text())
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    manager = PlansManager(plans).get_label_manager(meta)
    assert manager.ignore_label == IGNORE
    assert manager.num_segmentation_heads == 2


def test_given_plans_are_used_and_decide_with_the_files(built, tmp_path):
    images, _ = built
    plans = make_plans(images[:1], PRESET)

    def build():
        return build_dataset(images, preprocessed_dir=tmp_path / "q", preset=PRESET, plans=plans)

    folder = build()
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == plans
    before = _content(folder)
    assert build() == folder
    assert _content(folder) == before
    plans["original_median_shape_after_transp"] = [1, 2, 3]
    with pytest.raises(UsageError, match="other images, masks or settings"):
        build()


def test_plans_of_the_same_images_are_the_same(built):
    images, folder = built

    assert make_plans(images, PRESET) == json.loads((folder / "nnUNetPlans.json").read_text())


def test_some_images_can_train_in_every_fold_and_validate_in_none():
    images, always = [_image(f"c{n}") for n in range(4)], [_image("more"), _image("and")]

    for split in alternating_splits(images, n_folds=2, others=always):
        assert {"more__T2", "and__T2"} <= set(split["train"])
        assert len(split["train"]) == 4
        assert len(split["val"]) == 2
        assert not {"more__T2", "and__T2"} & set(split["val"])


def test_dealing_is_even_complete_and_blind_to_order():
    held_out = split_cases(["d", "b", "a", "c", "e", "a"], n_folds=3)

    assert held_out == (frozenset("ad"), frozenset("be"), frozenset("c"))
    assert split_cases("edcba", n_folds=3) == held_out
    assert split_cases([], n_folds=2) == (frozenset(), frozenset())


@pytest.mark.parametrize(("n_images", "n_others"), [(2, 8), (8, 2), (3, 3), (10, 14)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.75])
@pytest.mark.parametrize("n_folds", [0, 2])
def test_images_fill_their_share_of_the_draws(n_images, n_others, share, n_folds):
    images, others = ([_image(f"{kind}{k}") for k in range(n)] for kind, n in
                      (("i", n_images), ("o", n_others)))  # fmt: skip
    sampling = Sampling(tuple(map(case_key, images)), share)
    splits = alternating_splits(images, n_folds=n_folds, others=others)

    for split in splits or [{"train": [case_key(image) for image in (*images, *others)]}]:
        drawn = dict(zip(split["train"], sampling.probabilities(split["train"]), strict=True))
        assert sum(drawn.values()) == pytest.approx(1)
        assert sum(n for key, n in drawn.items() if key[0] == "i") == pytest.approx(share)
        assert len(set(drawn.values())) <= 2


def test_a_fold_without_other_images_draws_its_own_equally_often():
    assert Sampling(("a", "b"), 0.3).probabilities(["a", "b"]) == pytest.approx([0.5, 0.5])


def test_sampling_survives_the_disk_and_another_one_is_refused(tmp_path):
    sampling = Sampling(("a__T2",), 0.3)
    assert read_sampling(tmp_path) is None
    write_sampling(tmp_path, sampling)
    write_sampling(tmp_path, sampling)

    for other in (replace(sampling, share=0.5), replace(sampling, cases=("b__T2",))):
        with pytest.raises(UsageError, match=r"a share of 0\.3 of the patches"):
            write_sampling(tmp_path, other)
    assert read_sampling(tmp_path) == sampling


def test_sampling_of_an_earlier_version_is_replaced(tmp_path):
    (tmp_path / "sampling.json").write_text('{"a__T2": 0.3, "b__T2": 0.7}')

    write_sampling(tmp_path, Sampling(("a__T2",), 0.3))

    assert read_sampling(tmp_path) == Sampling(("a__T2",), 0.3)


def test_a_preprocessed_image_that_cannot_be_written_is_an_output_error(tmp_path, monkeypatch):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    def full(*_, **__):
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", full)
    images = write_labelled_cases(tmp_path / "data", count=2)

    with pytest.raises(OutputError, match=r"case1__T2: the preprocessed image cannot be written"):
        build_dataset(images, preprocessed_dir=tmp_path / "preprocessed", preset=PRESET)
    assert not list((tmp_path / "preprocessed").iterdir())
