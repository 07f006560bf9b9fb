import base64
import hashlib
import re
from dataclasses import replace

import pytest
from parsed_page import ParsedPage
from qc_runs import HOSTILE_CASE, HOSTILE_TEXT
from retrain_pages import NO_PREVIEWS, begun_round, example_page, fewshot_images, png

from sslmedsam2.errors import OutputError
from sslmedsam2.retrain.page import PageImage, write_page_of
from sslmedsam2.retrain.state import RelabelRecord


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        return write_page_of(example_page(**changes), tmp_path / "report" / "index.html")

    return write


@pytest.fixture
def page(write):
    return ParsedPage(write())


def test_the_head_says_how_much_there_is_and_which_round_is_best_and_why(page):
    assert "4labelled, of 3 patient(s)" in page.text
    assert "3unlabelled, of 3 patient(s)" in page.text
    assert "2round(s) finished" in page.text
    assert (
        "Best is round 2, by its Dice of 0.9234 on reference masks. "
        "Goes on: the pseudo masks still change (Dice to the last 0.9425)." in page.text
    )


def test_a_run_that_has_ended_says_why(write):
    decision = replace(example_page().decision, stop=True, reason="Dice on reference masks fell")
    text = ParsedPage(write(decision=decision)).text
    assert "Ended: Dice on reference masks fell." in text
    assert "worse" not in text


def test_a_network_that_is_worse_than_the_few_shot_branch_is_named_so(write):
    text = ParsedPage(write(warning="the best network is worse")).text
    assert "Warning: the best network is worse." in text


def test_each_round_has_its_line_beside_the_few_shot_branch(page):
    fewshot, _, second, third = page.table("The few-shot branch and all rounds")
    assert (fewshot["Round"], fewshot["Dice"], fewshot["HD mm"]) == (
        "Few-shot branch",
        "0.8721",
        "",
    )
    assert second == {
        "Round": "Round 2 best",
        "State": "finished",
        "Dice": "0.9234",
        "HD mm": "21.3",
        "Dice to the last": "0.9425",
        "Trained": "2",
        "Waiting": "1",
        "Rejected": "0",
        "Failed": "0",
    }
    assert (third["State"], third["Dice"], third["Trained"]) == ("pseudo labels chosen", "", "1")


def test_each_pseudo_label_says_whether_it_trains_and_why(page):
    first, waiting, hostile = page.table("Pseudo labels of round 2")
    assert first["Trains"] == "trains"
    assert first["Ignored %"] == "1.2"
    assert (first["Dice to the last"], first["Liver ml"]) == ("0.9100", "1400")
    assert waiting["Verdict"] == "doubtful"
    assert waiting["Trains"] == "waits"
    assert waiting["Why"] == "doubtful: waits for networks to agree on it"
    assert waiting["Agreement"] == "0.6123"
    assert waiting["Dice to the last"] == ""
    assert hostile["Why"] == HOSTILE_TEXT
    assert "Error" not in first


def test_an_image_that_could_not_be_re_predicted_says_why(write):
    (image,) = begun_round(3).images
    failed = RelabelRecord(image.query.case, "T2", "key", (0,), True, error="its grid is broken")
    part = replace(begun_round(3), images=(replace(image, relabelled=failed),))
    rounds = (*example_page().rounds[:2], part)
    (row,) = ParsedPage(write(rounds=rounds)).table("Pseudo labels of round 3")
    assert row["Error"] == "its grid is broken"


def test_the_few_shot_branch_tells_verdicts_and_warnings(page):
    accepted, doubtful, failed = page.table("Pseudo labels of the few-shot branch")
    assert (accepted["Verdict"], accepted["Estimated Dice"]) == ("accept", "0.9312")
    assert (accepted["at least"], accepted["at most"]) == ("0.880", "0.970")
    assert doubtful["Warnings and errors"] == f"low_agreement: {HOSTILE_TEXT}"
    assert (failed["Verdict"], failed["Warnings and errors"]) == ("failed", "cannot be read")
    assert "1 accept, 1 doubtful, 1 failed" in page.text


def test_every_finished_round_has_its_training_curves(page):
    charts = [one["aria-label"].split(":")[0] for one in page.found("svg") if "role" in one]
    assert charts == [
        "Dice on reference masks, and between the pseudo masks before and after a round",
        *["Loss on training patches", "Learning rate"] * 2,
    ]


def test_pictures_are_inside_the_page_and_a_missing_one_is_said(page):
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert [picture["src"] for picture in page.found("img")] == [address] * 3
    assert "Worst masks, by Dice to the mask before" in page.text
    assert page.text.count("There is no preview.") == 2


def test_new_masks_say_how_much_each_branch_counts(page):
    assert page.text.count("New masks: 55 % networks, 45 % few-shot branch.") == 2


def test_names_from_the_input_are_never_markup(write):
    path = write(title="a<b>&$script")
    page = ParsedPage(path)
    assert HOSTILE_TEXT in page.text
    assert f"{HOSTILE_CASE}.nii.gz: cannot be read" in page.text
    assert len(page.found("script")) == 1
    assert all(picture["src"].startswith("data:") for picture in page.found("img"))
    assert "<title>a&lt;b&gt;&amp;$script - retraining</title>" in path.read_text(encoding="utf-8")


def test_a_name_that_is_no_valid_text_is_shown_with_its_bytes(write):
    first, *others = fewshot_images()
    named = replace(first, query=replace(first.query, case="\udcff"))
    page = ParsedPage(write(title="\udcff", images=(named, *others)))
    assert page.text.count("\\udcff") == 3


def test_the_page_needs_nothing_beside_it_and_allows_no_other_script(write):
    path = write()
    text = path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["index.html"]
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert not re.search(r"https?:", text)
    (policy,) = (
        meta["content"]
        for meta in ParsedPage(path).found("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_run_that_has_only_begun_has_its_page(write):
    images = (PageImage(fewshot_images()[0].query, None),)
    unknown = {"decision": None, "fewshot_dice": None, "fewshot_gallery": NO_PREVIEWS}
    page = ParsedPage(write(rounds=(), problems=(), images=images, **unknown))
    assert "No round has begun yet." in page.text
    (line,) = page.table("The few-shot branch and all rounds")
    assert line["Dice"] == ""
    (row,) = page.table("Pseudo labels of the few-shot branch")
    assert row["Verdict"] == "not labelled yet"
    assert not [one for one in page.found("svg") if "role" in one]
    assert "cannot take part" not in page.text


def test_before_the_first_round_is_finished_its_state_is_reported(write):
    page = ParsedPage(write(decision=None, rounds=(begun_round(1),)))
    assert "No round is finished yet. Round 1: pseudo labels chosen." in page.text


def test_only_the_best_and_the_newest_round_are_unfolded(page):
    parts = [part for part in page.found("details") if part.get("class") == "part"]
    assert [(part["id"], "open" in part) for part in parts] == [
        ("few-shot", False),
        ("round-1", False),
        ("round-2", True),
        ("round-3", True),
    ]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OutputError, match="choose another output folder"):
        write_page_of(example_page(), tmp_path / "report" / "index.html")
