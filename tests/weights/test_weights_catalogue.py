import hashlib
import re

import pytest

from sslmedsam2.errors import ModelError, UsageError
from sslmedsam2.weights.catalogue import OFFICIAL, CatalogueEntry, Licence, find_official

CONTENT = b"tensors"
SMALL = CatalogueEntry(
    name="small",
    file_name="small.pt",
    urls=("https://publisher.example/small.pt",),
    revision="0123abc",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence=Licence("Apache-2.0", "Free to use.", "https://terms.example", False),
)


@pytest.fixture
def places(tmp_path):
    folders = (tmp_path / "platform", tmp_path / "fetched")
    for folder in folders:
        folder.mkdir()
    return folders


def find(places):
    return find_official("small", places=places, catalogue={"small": SMALL})


def test_official_checkpoints_are_pinned_whole():
    assert list(OFFICIAL) == ["sam2.1-hiera-tiny", "medsam2"]
    for entry in OFFICIAL.values():
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.revision in entry.urls[0]
        for url in entry.urls:
            assert url.startswith("https://")
            assert url.endswith(f"/{entry.file_name}")


def test_only_open_terms_go_without_acceptance():
    assert {name: entry.licence.must_be_accepted for name, entry in OFFICIAL.items()} == {
        "sam2.1-hiera-tiny": False,
        "medsam2": True,
    }


def test_first_place_that_has_the_file_decides(places):
    (places[1] / "small.pt").write_bytes(CONTENT)
    assert find(places) == places[1] / "small.pt"

    (places[0] / "small.pt").write_bytes(CONTENT)
    assert find(places) == places[0] / "small.pt"


@pytest.mark.parametrize("content", [b"tensor", b"Tensors"])
def test_altered_checkpoint_is_refused_and_not_passed_over(places, content):
    (places[0] / "small.pt").write_bytes(content)
    (places[1] / "small.pt").write_bytes(CONTENT)

    with pytest.raises(ModelError) as refusal:
        find(places)
    assert refusal.value.subject == str(places[0] / "small.pt")
    assert f"weights fetch small --to {places[0]}" in refusal.value.remedy


def test_folder_in_the_place_of_a_checkpoint_is_refused(places):
    (places[0] / "small.pt").mkdir()

    with pytest.raises(ModelError, match=r"small\.pt"):
        find(places)


def test_checkpoint_not_fetched_yet_names_the_command(places):
    with pytest.raises(ModelError) as refusal:
        find(places)
    assert refusal.value.remedy == "Run 'sslmedsam2 weights fetch small'"
    assert all(str(place) in refusal.value.reason for place in places)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"sam2\.1-hiera-tiny, medsam2"):
        find_official("sam3")
