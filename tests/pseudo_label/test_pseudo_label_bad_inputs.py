"""What cannot be used is named, and everything else goes on."""

import csv
import logging

import numpy as np
import pytest
from held_locks import held_elsewhere
from pseudo_label_samples import Workplace
from tiny_scans import SMALL_AFFINE_RAS, write_scan

from sslmedsam2.contract.pseudo_label_outputs import Shard
from sslmedsam2.errors import ExitCode, ModelError, NoInputError, OutputError, UsageError
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.pseudo_label.pipeline import pseudo_label

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workplace(tmp_path, small_sam2):
    """One labelled volume and one sound query."""
    place = Workplace(tmp_path, small_sam2)
    place.add_support("1001-A-S1", seed=1)
    place.add_query("0009-A/T2.nii.gz", n_slices=4)
    return place


def write_zeros(path):
    write_scan(path, np.zeros((9, 35, 40), np.float32), affine_ras=SMALL_AFFINE_RAS)


def write_nonsense(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no image")


def test_a_query_that_has_become_bad_keeps_no_earlier_mask(workplace):
    workplace.run()
    assert workplace.paths("0009-A").mask.is_file()
    write_nonsense(workplace.query / "0009-A" / "T2.nii.gz")

    workplace.run(resume=True)

    assert [path.name for path in workplace.paths("0009-A").mask.parent.iterdir()] == [
        "T2_pseudo.json"
    ]


def empty_mask(folder):
    path = folder / "mask_GED4.nii.gz"
    write_scan(path, np.zeros((9, 35, 40)), dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)


def mask_of_another_shape(folder):
    path = folder / "mask_GED4.nii.gz"
    write_scan(path, np.ones((8, 35, 40)), dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)


def mask_elsewhere(folder):
    path = folder / "mask_GED4.nii.gz"
    elsewhere = SMALL_AFFINE_RAS.copy()
    elsewhere[2, 3] += 42
    write_scan(path, read_mask(path).array_zyx, dtype=np.uint8, affine_ras=elsewhere)


def mask_flipped_against_its_image(folder):
    path = folder / "mask_GED4.nii.gz"
    mask = read_mask(path).array_zyx
    flipped = SMALL_AFFINE_RAS.copy()
    flipped[:3, 3] += flipped[:3, 1] * (mask.shape[1] - 1)
    flipped[:3, 1] *= -1
    write_scan(path, mask[:, ::-1], dtype=np.uint8, affine_ras=flipped)


def mask_of_several_organs(folder):
    path = folder / "mask_GED4.nii.gz"
    organs = read_mask(path).array_zyx * 63
    organs[0, :5] = 252
    write_scan(path, organs, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS)


def unreadable_mask(folder):
    write_nonsense(folder / "mask_GED4.nii.gz")


def unreadable_image(folder):
    write_nonsense(folder / "GED4.nii.gz")


SPOILERS = [
    empty_mask,
    mask_of_another_shape,
    mask_elsewhere,
    mask_flipped_against_its_image,
    mask_of_several_organs,
    unreadable_mask,
    unreadable_image,
]


BAD_QUERIES = {"0001-A": write_zeros, "0002-A": write_nonsense}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, small_sam2):
    """Sound volumes among all the bad ones, the summary of a run on them, and what it logged."""
    place = Workplace(tmp_path_factory.mktemp("spoilt"), small_sam2)
    place.add_support("1001-A-S1", seed=1)
    for spoil in SPOILERS:
        spoil(place.add_support(f"{spoil.__name__}-A-S1"))
    for case, write in BAD_QUERIES.items():
        write(place.query / case / "T2.nii.gz")
    (place.query / "Vendor-A" / "0003-A").mkdir(parents=True)
    place.add_query("0009-A/T2.nii.gz", n_slices=4)
    place.add_query("1001-A-S1/GED4.nii.gz", seed=1)
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("sslmedsam2").addHandler(handler)
    yield place, place.run(), logged
    logging.getLogger("sslmedsam2").removeHandler(handler)


def test_a_bad_query_is_a_row_with_an_error_and_the_next_goes_on(spoilt):
    place, summary, _ = spoilt

    assert summary.exit_code == ExitCode.SOME_CASES_FAILED
    rows = {row["case"]: row for row in csv.DictReader(summary.table_path.open(newline=""))}
    assert list(rows) == ["0001-A", "0002-A", "0003-A", "0009-A", "1001-A-S1"]
    for case in BAD_QUERIES:
        assert f"{case}/T2.nii.gz" in rows[case]["error"]
        assert rows[case]["verdict"] == ""
        assert not place.paths(case).mask.exists()
    assert rows["0009-A"]["error"] == ""
    assert place.paths("0009-A").mask.is_file()


def test_a_folder_that_should_be_a_query_and_is_none_is_reported(spoilt):
    _, summary, _ = spoilt

    (problem,) = summary.problems
    assert problem.case == "0003-A"
    rows = {row["case"]: row for row in csv.DictReader(summary.table_path.open(newline=""))}
    assert "holds no image" in rows["0003-A"]["error"]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_bad_support_is_named_and_left_out(spoilt, spoil):
    place, summary, logged = spoilt

    assert len(summary.support_errors) == len(SPOILERS)
    (error,) = (line for line in summary.support_errors if f"{spoil.__name__}-A-S1" in line)
    assert error in "\n".join(logged)
    record = place.record("0009-A")
    assert [score["name"] for score in record["supports"]] == ["1001-A-S1/GED4"]


def test_label_chooses_the_liver_of_a_support_with_several_organs(workplace):
    mask_of_several_organs(workplace.support / "1001-A-S1")

    summary = workplace.run(label=63)
    assert summary.exit_code == ExitCode.OK
    with pytest.raises(NoInputError, match="no voxel has the label 4"):
        pseudo_label(workplace.options(label=4))


def test_the_only_support_cannot_label_itself(spoilt):
    assert "the only labelled volume" in spoilt[0].record("1001-A-S1", "GED4")["error"]


def test_without_a_usable_support_nothing_is_begun(workplace):
    empty_mask(workplace.support / "1001-A-S1")

    with pytest.raises(NoInputError, match="holds no liver"):
        pseudo_label(workplace.options())
    assert not workplace.output.exists()


def test_a_support_folder_without_masks_is_an_error(workplace, tmp_path):
    (tmp_path / "none").mkdir()

    with pytest.raises(NoInputError, match="labelled volume"):
        pseudo_label(workplace.options(support_dir=tmp_path / "none"))


def test_nothing_to_label_is_an_error_that_says_why(workplace):
    with pytest.raises(NoInputError, match="is labelled"):
        pseudo_label(workplace.options(query_dir=workplace.support))


@pytest.mark.parametrize("content", [b"", b"no network", None])
@pytest.mark.parametrize("name", ["sam2.pt", "sam2.safetensors"])
def test_a_bad_checkpoint_is_refused_before_anything_is_written(workplace, name, content):
    path = workplace.query.parent / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ModelError, match=name):
        pseudo_label(workplace.options(sam2=str(path)))
    assert not workplace.output.exists()


@pytest.mark.parametrize("inside", [".", "out", "0009-A/out"])
def test_the_output_may_not_lie_among_the_queries(workplace, inside):
    with pytest.raises(UsageError, match="among the queries"):
        pseudo_label(workplace.options(output_dir=workplace.query / inside))


def test_a_folder_that_another_run_writes_to_is_refused_but_not_another_shards(workplace):
    with (
        held_elsewhere(workplace.output, name=".run.lock"),
        pytest.raises(UsageError, match="another process is writing there"),
    ):
        pseudo_label(workplace.options())

    with held_elsewhere(workplace.output, name=".run_1_of_2.lock"):
        pseudo_label(workplace.options(shard=Shard(2, 2)))
        with pytest.raises(UsageError, match="another process is writing there"):
            pseudo_label(workplace.options(shard=Shard(1, 2)))


def test_an_output_that_is_a_link_in_a_circle_is_an_output_error(workplace):
    workplace.output.symlink_to(workplace.output)

    with pytest.raises(OutputError, match="cannot be written"):
        pseudo_label(workplace.options())
