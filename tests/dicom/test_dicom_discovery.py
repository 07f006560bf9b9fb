"""A messy tree of DICOM files to the right table, and nothing of a patient in it."""

from dataclasses import asdict

import numpy as np
import pytest
from dicom_samples import (
    CORONAL,
    PATIENT_ID,
    PATIENT_NAME,
    edit,
    write_enhanced,
    write_report_object,
    write_series,
)
from tiny_scans import abdomen

from sslmedsam2.contract.names import PREDICTED_SEQUENCES
from sslmedsam2.contract.sequence_map import parse_sequence_map
from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.discovery import NO_STUDY, case_name, discover, find_volumes
from sslmedsam2.dicom.files import find_dicom_files
from sslmedsam2.dicom.reading import read_dicom
from sslmedsam2.errors import UsageError
from sslmedsam2.predict.inputs import find_inputs

ARRAY = abdomen()[0][:10, :16, :16]


def found(folder, *, table=None, sequences=PREDICTED_SEQUENCES):
    files = find_dicom_files(walk_input(folder))
    return discover(files, sequences=sequences, sequence_map=parse_sequence_map(table or {}))


def rows(discovery):
    """Return the table without its hashes: number, sequence, use and reason of each row."""
    return [(row.series.split("-")[0], row.sequence, row.use, row.reason) for row in discovery.rows]


def test_a_messy_tree_gives_the_right_table(tmp_path):
    write_series(tmp_path / PATIENT_NAME / "mixed", ARRAY, number=3)
    write_series(tmp_path / PATIENT_NAME / "loc", ARRAY[:3], number=1, description="loc")
    write_series(
        tmp_path / PATIENT_NAME / "hbp", ARRAY, number=5, description="vibe 20min", skipped=(4,)
    )
    write_series(
        tmp_path / PATIENT_NAME / "adc", ARRAY, number=7, description="dwi",
        ImageType=["DERIVED", "PRIMARY", "ADC"],
    )  # fmt: skip
    write_series(tmp_path / "other", ARRAY, study="2", number=5, description="vibe 20min")
    write_report_object(tmp_path / "other" / "sr", study="2")
    (tmp_path / PATIENT_NAME / "IM77").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / PATIENT_NAME / f"{PATIENT_NAME}.dcm").write_bytes(b"")

    discovery = found(tmp_path)

    first, second = sorted({row.case for row in discovery.rows} - {NO_STUDY})
    table = {
        case: [line for line, row in zip(rows(discovery), discovery.rows, strict=True)
               if row.case == case]
        for case in (NO_STUDY, first, second)
    }  # fmt: skip
    assert {(number, use, reason) for number, _, use, reason in table[NO_STUDY]} == {
        ("file", "unusable", "it is named like DICOM and does not begin so"),
        ("file", "unusable", "the DICOM header cannot be read, or names no study"),
    }
    missing = "1 slice is missing, the first after slice 4 of 9"
    assert sorted([table[first], table[second]], key=len) == [
        [
            ("5", "GED4", "segment", "the description says 20 min"),
            ("x", None, "left_out", "modality SR is neither MR nor CT"),
        ],
        [
            ("1", None, "left_out", "a localizer"),
            ("3", "T2", "segment", "the description says 't2'"),
            ("5", "GED4", "unusable", missing),
            ("7", None, "left_out", "an ADC map"),
        ],
    ]
    assert sorted(named.row.sequence for named in discovery.volumes) == ["GED4", "T2"]


def test_nothing_in_a_discovery_shows_a_patient(tmp_path):
    folder = tmp_path / PATIENT_NAME
    write_series(folder, ARRAY, description=f"t2 {PATIENT_NAME}", ContrastBolusAgent=PATIENT_ID)
    (folder / "IM1").write_bytes(b"\0" * 128 + b"DICM" + PATIENT_NAME.encode())

    discovery = found(tmp_path)

    shown = repr(discovery) + repr([asdict(row) for row in discovery.rows])
    for secret in (PATIENT_NAME, PATIENT_NAME.lower(), PATIENT_ID, PATIENT_ID.lower()):
        assert secret not in shown
    # Who holds the files can have them named.
    assert any(PATIENT_NAME in one.place for one in discovery.identities.values())


def test_names_are_stable_and_tell_studies_apart(tmp_path):
    for place in ("here", "there"):
        write_series(tmp_path / place / "x", ARRAY, study="1")
    write_series(tmp_path / "there" / "y", ARRAY, study="2")

    [here] = found(tmp_path / "here").volumes
    there = {named.volume.case for named in found(tmp_path / "there").volumes}

    assert here.volume.case in there
    assert len(there) == 2
    assert here.volume.case == case_name(here.volume.frames[0].study_uid)


def test_studies_that_share_the_number_of_a_series_have_a_volume_each(tmp_path):
    for study in ("1", "2"):
        write_series(tmp_path / study, ARRAY, study=study, series_uid="1.2.3.7")

    names = {named.volume.name for named in found(tmp_path).volumes}

    assert len(names) == 2
    assert names == set(find_volumes(find_dicom_files(walk_input(tmp_path))))


def test_copies_of_an_image_count_once(tmp_path):
    for path in write_series(tmp_path / "a", ARRAY):
        (tmp_path / f"copy-{path.name}").write_bytes(path.read_bytes())

    [named] = found(tmp_path).volumes

    assert named.row.images == len(ARRAY)


def test_one_volume_is_chosen_for_a_sequence_and_the_others_say_so(tmp_path):
    write_series(tmp_path / "cor", ARRAY, number=2, description="t2 cor", orientation=CORONAL)
    write_series(tmp_path / "few", ARRAY[:8], number=3, description="t2 tra")
    write_series(tmp_path / "many", ARRAY, number=4, description="t2 tra fs")

    discovery = found(tmp_path)

    [chosen] = discovery.volumes
    assert chosen.volume.series.startswith("4-")
    others = [row for row in discovery.rows if row.use == "left_out"]
    assert [row.series[:2] for row in others] == ["2-", "3-"]
    for row in others:
        assert row.reason == f"the description says 't2'; {chosen.volume.series} is used as T2"


def test_a_broken_volume_makes_way_for_a_whole_one(tmp_path):
    write_series(tmp_path / "best", ARRAY, number=2, skipped=(5,))
    write_series(tmp_path / "cor", ARRAY, number=3, orientation=CORONAL)

    discovery = found(tmp_path)

    assert [row.use for row in discovery.rows] == ["unusable", "segment"]


def test_sequences_that_are_not_asked_for_are_left_out(tmp_path):
    write_series(tmp_path, ARRAY, description="vibe arterial")

    assert rows(found(tmp_path))[0][2:] == (
        "left_out",
        "the description says 'arterial'; GED1 is used only if --sequences names it",
    )
    assert len(found(tmp_path, sequences=("GED1",)).volumes) == 1


def test_few_images_are_no_volume(tmp_path):
    write_series(tmp_path, ARRAY[:5])

    assert rows(found(tmp_path)) == [
        ("3", None, "left_out", "fewer than 6 images that could be one volume")
    ]


def test_every_volume_of_an_enhanced_file_has_its_own_name(tmp_path):
    write_enhanced(tmp_path / "enh", {50.0: ARRAY, 800.0: ARRAY, 1500.0: ARRAY})

    discovery = found(tmp_path)
    [named] = discovery.volumes

    assert named.row.sequence == "DWI_800"
    assert named.volume.series.endswith(".2")
    assert len(find_volumes(find_dicom_files(walk_input(tmp_path)))) == 3
    assert named.volume.name in find_volumes(find_dicom_files(walk_input(tmp_path)))


@pytest.mark.parametrize("key", ["uid", "description", "series", "full"])
def test_the_map_overrules_the_guess_by_any_name_of_a_series(tmp_path, key):
    write_series(tmp_path, ARRAY, description="My Own NAME", series_uid="1.2.3.4")
    [named] = found(tmp_path).volumes
    assert named.row.sequence is None
    volume = named.volume
    keys = {"uid": "1.2.3.4", "description": "my own name", "series": volume.series,
            "full": volume.name}  # fmt: skip

    [mapped] = found(tmp_path, table={keys[key]: "ged-4"}).volumes

    assert (mapped.row.sequence, mapped.row.reason) == ("GED4", "named by the sequence map")


def test_the_map_skips_keeps_without_sequence_and_saves_derived_images(tmp_path):
    write_series(tmp_path / "a", ARRAY, number=1, description="t2 one")
    write_series(tmp_path / "b", ARRAY, number=2, description="t2 two")
    derived = ["DERIVED", "SECONDARY"]
    write_series(tmp_path / "c", ARRAY, number=3, description="t1", ImageType=derived)

    discovery = found(tmp_path, table={"t2 one": "skip", "t2 two": "none", "t1": "T1"})

    assert [(row.sequence, row.use) for row in discovery.rows] == [
        (None, "left_out"),
        (None, "segment"),
        ("T1", "segment"),
    ]


def test_of_a_mapped_series_the_volume_that_looks_the_part_is_taken(tmp_path):
    write_enhanced(tmp_path / "enh", {50.0: ARRAY, 900.0: ARRAY}, description="liver")
    [named] = found(tmp_path).volumes

    [mapped] = found(tmp_path, table={"liver": "DWI_800"}).volumes

    assert mapped.volume.name == named.volume.name
    assert mapped.volume.frames[0].b_value == 900


def test_entries_that_fit_nothing_are_told_by_number_and_not_quoted(tmp_path, caplog):
    write_series(tmp_path, ARRAY)

    find_inputs(tmp_path, sequences=None, sequence_map=parse_sequence_map({PATIENT_NAME: "skip"}))

    warnings = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert warnings == ["--sequence-map: entry 1 fits no file or series"]


@pytest.mark.parametrize("value", ["GED9", "", 4, None, ["T1"]])
def test_a_map_to_something_else_is_a_usage_error(value):
    with pytest.raises(UsageError, match="--sequence-map, entry 2: its value is not a sequence"):
        parse_sequence_map({"fine": "T1", PATIENT_NAME: value})


def test_series_of_other_orientation_inside_one_series_are_left_out(tmp_path):
    write_series(tmp_path / "a", ARRAY, series_uid="1.2.3")
    write_series(tmp_path / "b", ARRAY[:2], series_uid="1.2.3", orientation=CORONAL)

    assert [(row.use, row.images) for row in found(tmp_path).rows] == [
        ("left_out", 2),
        ("segment", 10),
    ]


def test_a_file_cut_short_makes_its_series_unusable(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    paths[-1].write_bytes(paths[-1].read_bytes()[:-10])

    assert rows(found(tmp_path)) == [
        ("3", "T2", "unusable", "1 of its 10 images end before their last pixel")
    ]


def test_a_directory_file_is_passed_over(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    directory = tmp_path / "DICOMDIR"
    directory.write_bytes(paths[0].read_bytes())
    edit(directory, SOPClassUID="1.2.840.10008.1.3.10")

    assert [row.images for row in found(tmp_path).rows] == [10]


def test_colour_images_are_left_out_even_by_map(tmp_path):
    for path in write_series(tmp_path, np.repeat(ARRAY, 3, axis=2), description="rgb"):
        edit(path, SamplesPerPixel=3, Columns=16, PhotometricInterpretation="RGB")

    for table in ({}, {"rgb": "T1"}):
        assert rows(found(tmp_path, table=table)) == [("3", None, "left_out", "a colour image")]


def test_copies_under_other_identifiers_are_dropped_with_a_note(tmp_path):
    write_series(tmp_path / "a", ARRAY, series_uid="1.2.3")
    write_series(tmp_path / "b", ARRAY, series_uid="1.2.3", first_instance=101)

    discovery = found(tmp_path)

    [named] = discovery.volumes
    assert len(named.volume.frames) == len(ARRAY)
    [note] = discovery.notes
    assert f"{len(ARRAY)} images are copies of others" in note


def test_a_series_exported_twice_is_segmented_once(tmp_path):
    for number in (1, 2):
        write_series(tmp_path / str(number), ARRAY, number=number, description="liver")

    discovery = found(tmp_path)

    assert len(discovery.volumes) == 1
    [row] = [row for row in discovery.rows if row.use == "left_out"]
    assert "same places, same pixels" in row.reason


def test_one_identifier_for_all_images_loses_none_of_them(tmp_path):
    write_series(tmp_path, ARRAY, SOPInstanceUID="1.2.3.4")

    [named] = found(tmp_path).volumes

    assert named.row.images == len(ARRAY)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("PatientID", "more than one patient"),
        ("PatientName", "more than one patient"),
        ("PatientBirthDate", "more than one patient"),
        ("FrameOfReferenceUID", "more than one FrameOfReferenceUID"),
    ],
)
def test_a_series_of_two_patients_or_positions_is_refused(tmp_path, tag, reason):
    values = {"PatientBirthDate": "19610311", "FrameOfReferenceUID": "1.2.3"}
    paths = write_series(tmp_path, ARRAY)
    for path in paths[5:]:
        edit(path, **{tag: values.get(tag, "Other")})

    discovery = found(tmp_path, table={"t2_haste_tra": "T2"})

    assert discovery.volumes == ()
    [row] = discovery.rows
    assert row.use == "unusable"
    assert reason in row.reason


def test_a_study_of_two_patients_is_refused(tmp_path):
    write_series(tmp_path / "a", ARRAY, number=1, description="t2")
    write_series(tmp_path / "b", ARRAY, number=2, description="t1 nativ", PatientID="Other")

    discovery = found(tmp_path)

    assert [row.use for row in discovery.rows] == ["unusable", "unusable"]
    assert "the study holds images of more than one patient" in discovery.rows[0].reason


def test_localizers_in_several_frames_of_reference_fail_nothing(tmp_path):
    write_series(tmp_path, ARRAY, description="localizer", FrameOfReferenceUID=lambda n: f"1.2.{n}")

    assert [row.use for row in found(tmp_path).rows] == ["left_out"]


def directions(folder, *, series_uid="1.2.3", tag="DiffusionGradientOrientation"):
    for number, direction in enumerate(([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])):
        write_series(
            folder / str(number),
            ARRAY + 100 * number,
            series_uid=series_uid,
            description="dwi",
            DiffusionBValue=800.0,
            **{tag: direction},
        )


def test_without_a_trace_image_the_mean_of_the_directions_is_segmented(tmp_path):
    directions(tmp_path)

    discovery = found(tmp_path)
    [named] = discovery.volumes

    assert (named.row.sequence, named.row.images) == ("DWI_800", 3 * len(ARRAY))
    image = read_dicom(named.volume)
    assert np.allclose(image.array_zyx, np.rint(ARRAY) + 100, atol=1)
    assert any(note.startswith("averaged: ") for note in image.repairs)
    assert named.volume.name in find_volumes(find_dicom_files(walk_input(tmp_path)))


def test_a_trace_image_is_preferred_to_its_directions(tmp_path):
    directions(tmp_path)
    write_series(
        tmp_path / "trace",
        ARRAY + 1000,
        series_uid="1.2.3",
        description="dwi",
        DiffusionBValue=800.0,
        DiffusionDirectionality="ISOTROPIC",
    )

    [named] = found(tmp_path).volumes

    assert named.volume.averaged == ()
    assert named.volume.frames[0].diffusion_direction == "trace"
