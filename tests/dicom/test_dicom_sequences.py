"""What single headers and whole studies are taken for."""

import numpy as np
import pytest
from dicom_samples import AXIAL, CORONAL, write_series

from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.dicom.phases import VolumeCandidate, name_phases
from sslmedsam2.dicom.sequences import exclusion_of, guess_sequence

GRADIENT = {"ScanningSequence": "GR", "EchoTime": 2.4, "RepetitionTime": 5.0}
SPIN = {"ScanningSequence": "SE", "EchoTime": 90.0, "RepetitionTime": 2000.0}
PIXELS = np.zeros((1, 4, 4))


@pytest.fixture
def frame(tmp_path):
    """Write one image with a description and tags; return its frame as read."""

    def make(description, **tags):
        [path] = write_series(tmp_path / "one", PIXELS, description=description, **tags)
        [found] = read_frames(path, name="one")
        return found

    return make


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("t1_vibe_fs_tra_art", "GED1"),
        ("LAVA late arterial phase", "GED1"),
        ("eTHRIVE portal venous", "GED2"),
        ("t1_vibe_pvp", "GED2"),
        ("t1 vibe transitional", "GED3"),
        ("t1_vibe_fs_tra_3min", "GED3"),
        ("t1_vibe_fs_tra_20 min", "GED4"),
        ("AX LAVA HBP", "GED4"),
        ("T1 hepatobiliary", "GED4"),
        ("t1_vibe_native", "T1"),
        ("t2_haste_tra", "T2"),
        ("T2W_TSE delayed", "T2"),
        ("ep2d_diff_b800", "DWI_800"),
    ],
)
def test_descriptions_name_sequences(frame, description, sequence):
    guess = guess_sequence(frame(description))

    assert (guess.kind, guess.sequence) == ("sequence", sequence)
    assert guess.reason


@pytest.mark.parametrize(
    ("tags", "sequence", "reason"),
    [
        (GRADIENT, "T1", "gradient echo, TE 2.4 ms, TR 5 ms; no sign of contrast agent"),
        (SPIN, "T2", "spin echo, TE 90 ms, TR 2000 ms"),
        ({"DiffusionBValue": 750.0}, "DWI_800", "b = 750 s/mm2"),
        ({"SequenceName": "*ep_b800t"}, "DWI_800", "b = 800 s/mm2"),
    ],
)
def test_physics_speaks_where_words_are_silent(frame, tags, sequence, reason):
    guess = guess_sequence(frame("abdomen", **tags))

    assert (guess.sequence, guess.reason) == (sequence, reason)


def test_makers_private_b_values_are_read(tmp_path):
    import pydicom

    for group, creator, element, value in (
        (0x0019, "SIEMENS MR HEADER", 0x0C, "800"),
        (0x0043, "GEMS_PARM_01", 0x39, ["1000000800", "0", "0"]),
    ):
        [path] = write_series(tmp_path, PIXELS, description="liver")
        dataset = pydicom.dcmread(path)
        dataset.private_block(group, creator, create=True).add_new(element, "IS", value)
        dataset.save_as(path)
        [found] = read_frames(path, name="one")
        assert found.b_value == 800


@pytest.mark.parametrize(
    ("description", "tags", "reason"),
    [
        ("ep2d_diff_b50", {"DiffusionBValue": 50.0}, "b = 50 s/mm2"),
        ("dwi", {"DiffusionBValue": 0.0}, "b = 0 s/mm2"),
    ],
)
def test_other_b_values_are_left_out(frame, description, tags, reason):
    guess = guess_sequence(frame(description, **tags))

    assert guess.kind == "left_out"
    assert reason in guess.reason


def test_a_b_value_of_zero_alone_makes_no_diffusion_image(frame):
    assert guess_sequence(frame("t2_tse", DiffusionBValue=0.0)).sequence == "T2"


@pytest.mark.parametrize(
    ("description", "tags", "modality"),
    [
        ("MRCP 3d", SPIN, "MR"),
        ("heavily weighted", {**SPIN, "EchoTime": 700.0}, "MR"),
        ("trufi cor", GRADIENT, "MR"),
        ("something", {}, "MR"),
        ("portal venous", {}, "CT"),
    ],
)
def test_what_is_no_sequence_stays_without_sequence(frame, description, tags, modality):
    assert guess_sequence(frame(description, modality=modality, **tags)).kind == "no_sequence"


@pytest.mark.parametrize(
    ("description", "tags", "reason"),
    [
        ("3-plane loc", {}, "a localizer"),
        ("tra", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ("dwi", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "an ADC map"),
        ("t1 vibe sub", {}, "a subtraction"),
        ("t1", {"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "a reformat"),
        ("t1", {"ImageType": ["DERIVED", "SECONDARY"]}, "a derived image"),
        ("t1", {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "a phase image"),
        ("t1 dixon", {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "FAT"]}, "a fat image"),
        ("t1", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a picture of a screen"),
        ("t1", {"Modality": "US"}, "modality US is neither MR nor CT"),
        ("t1", {"Modality": "Doe^John"}, "modality ? is neither MR nor CT"),
    ],
)
def test_images_that_are_not_to_segment_say_why(frame, description, tags, reason):
    assert reason in exclusion_of(frame(description, **tags))


def test_images_processed_by_the_scanner_are_images(frame):
    image = frame("ep2d_diff", ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"])
    assert exclusion_of(image) is None


def test_axial_and_water_images_are_preferred(frame):
    axial = guess_sequence(frame("t1 vibe dixon", orientation=AXIAL))
    in_phase = guess_sequence(frame("t1 vibe", ImageType=["ORIGINAL", "PRIMARY", "IN_PHASE"]))
    coronal = guess_sequence(frame("t1 vibe", orientation=CORONAL))

    assert axial.penalty < in_phase.penalty < coronal.penalty


@pytest.fixture
def study(frame):
    """Make candidates acquired at given minutes after noon."""

    def make(*minutes, description="t1_vibe_fs", one_series=False):
        found = []
        for number, minute in enumerate(minutes):
            time = f"12{int(minute):02d}{int(minute % 1 * 60):02d}"
            image = frame(
                description,
                number=1 if one_series else number,
                AcquisitionTime=time,
                ContrastBolusAgent="Primovist",
                **GRADIENT,
            )
            found.append(VolumeCandidate(f"{number}", ((image,),), guess_sequence(image)))
        return [one.guess.sequence for one in name_phases(found)]

    return make


def test_phases_without_names_follow_their_order_and_time(study):
    assert study(1, 1.7, 4, 21) == ["GED1", "GED2", "GED3", "GED4"]
    assert study(21, 4, 1, 1.7) == ["GED4", "GED3", "GED1", "GED2"]


def test_four_phases_of_one_series_begin_before_contrast(study):
    assert study(0, 1, 2, 4, one_series=True) == ["T1", "GED1", "GED2", "GED3"]


def test_one_image_with_contrast_is_no_phase(study):
    assert study(5) == [None]
    assert study(5, 25) == [None, "GED4"]


def test_named_phases_date_the_others(frame):
    def candidate(description, time, **tags):
        image = frame(description, AcquisitionTime=time, **GRADIENT, **tags)
        return VolumeCandidate(description, ((image,),), guess_sequence(image))

    found = name_phases(
        [
            candidate("vibe arterial", "120000"),
            candidate("vibe", "122000", ContrastBolusAgent="x"),
        ]
    )

    assert [one.guess.sequence for one in found] == ["GED1", "GED4"]
    assert "20 min after the first image with contrast" in found[1].guess.reason


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("T1 hépatobiliaire", "GED4"),
        ("T1 hépato-biliaire 20 mn", "GED4"),
        ("T1 VIBE hepatobiliäre Phase", "GED4"),
        ("T1 fase hepatobiliar", "GED4"),
        ("LAVA fase epatobiliare", "GED4"),
        ("T1 肝胆期", "GED4"),
        ("T1 肝胆特异期", "GED4"),
        ("T1 肝細胞造影相", "GED4"),
        ("T1 20分後", "GED4"),
        ("T1 artériel", "GED1"),
        ("T1 fase arterial", "GED1"),
        ("T1 动脉期", "GED1"),
        ("T1 temps portal veineux", "GED2"),
        ("T1 portalvenös", "GED2"),
        ("T1 門脈相", "GED2"),
        ("T1 門静脈", "GED2"),
        ("T1 tardif", "GED3"),
        ("T1 Spätphase", "GED3"),
        ("T1 移行相", "GED3"),
        ("T1 sans injection", "T1"),
        ("T1 sin contraste", "T1"),
        ("T1 vor KM", "T1"),
        ("肝胆胰 T1 平扫", "T1"),
        ("T1 造影前", "T1"),
        ("弥散 b800", "DWI_800"),
    ],
)
def test_descriptions_of_other_languages_name_sequences(frame, description, sequence):
    image = frame(description, SpecificCharacterSet="ISO_IR 192", **GRADIENT)

    assert guess_sequence(image).sequence == sequence


def test_subtractions_of_other_languages_are_left_out(frame):
    for description in ("T1 soustraction", "T1 Subtraktion", "T1 减影"):
        assert exclusion_of(frame(description, SpecificCharacterSet="ISO_IR 192"))


def test_a_native_image_that_names_the_agent_stays_t1(study):
    """Four dynamic images in four series, whose headers all name the agent."""
    assert study(0, 1, 1.7, 4) == ["T1", "GED1", "GED2", "GED3"]
    assert study(0, 1, 1.7, 4, 21) == ["T1", "GED1", "GED2", "GED3", "GED4"]


def test_an_image_long_before_the_dynamic_phases_is_native(study):
    assert study(0, 13, 13.7, 16, 33) == ["T1", "GED1", "GED2", "GED3", "GED4"]


def test_an_image_before_a_named_phase_is_native(frame):
    def candidate(description, time):
        image = frame(description, AcquisitionTime=time, ContrastBolusAgent="x", **GRADIENT)
        return VolumeCandidate(description, ((image,),), guess_sequence(image))

    found = name_phases([candidate("vibe", "120000"), candidate("vibe arterial", "120300")])

    assert [one.guess.sequence for one in found] == ["T1", "GED1"]


def test_an_image_before_the_injection_is_native(frame):
    times = {"AcquisitionTime": "120000", "ContrastBolusStartTime": "120500"}
    image = frame("t1_vibe", ContrastBolusAgent="Primovist", **times, **GRADIENT)

    assert guess_sequence(image).sequence == "T1"
