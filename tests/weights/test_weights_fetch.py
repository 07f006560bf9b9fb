import hashlib
import json
from dataclasses import replace
from datetime import date, datetime, timezone

import pytest
from file_server import FileServer, serving

from sslmedsam2.errors import ModelError, OutputError, UsageError
from sslmedsam2.weights.catalogue import CatalogueEntry, Licence
from sslmedsam2.weights.fetch import fetch, record_path

CONTENT = bytes(range(256)) * 4000  # more than one chunk
HALF = len(CONTENT) // 2
OTHER = CONTENT[:-1] + b"?"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with serving(FileServer(CONTENT)) as running:
        yield running


@pytest.fixture
def entry(server):
    return CatalogueEntry(
        name="small",
        file_name="small.pt",
        urls=(server.url("official.pt"),),
        revision="0123abc",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence=Licence("Apache-2.0", "Free to use.", "https://terms.example", False),
    )


def bring(entry, to_dir, **options):
    return fetch(entry, to_dir=to_dir, **options)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_arrives_whole_with_its_terms_beside_it(entry, tmp_path):
    path = bring(entry, tmp_path / "new" / "sam2")

    assert path == tmp_path / "new" / "sam2" / "small.pt"
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["small.pt", "small.pt.licence.json"]
    record = json.loads(record_path(path).read_text())
    assert (
        abs(date.fromisoformat(record.pop("fetched")) - datetime.now(timezone.utc).date()).days < 2
    )
    assert record == {
        "name": "small",
        "file": "small.pt",
        "source": entry.urls[0],
        "revision": "0123abc",
        "bytes": len(CONTENT),
        "sha256": entry.sha256,
        "licence": "Apache-2.0",
        "terms": "Free to use.",
        "terms_url": "https://terms.example",
    }


def test_right_file_is_left_alone_without_a_request(entry, tmp_path, server):
    path = bring(entry, tmp_path)
    before = path.stat().st_mtime_ns, record_path(path).read_bytes()

    assert bring(entry, tmp_path) == path
    assert (path.stat().st_mtime_ns, record_path(path).read_bytes()) == before
    assert len(server.asked) == 1


def test_right_file_that_was_copied_by_hand_gets_its_terms(entry, tmp_path, server):
    (tmp_path / "small.pt").write_bytes(CONTENT)

    path = bring(entry, tmp_path)

    assert json.loads(record_path(path).read_text())["licence"] == "Apache-2.0"
    assert server.asked == []


def test_wrong_file_under_the_name_is_replaced(entry, tmp_path, caplog):
    (tmp_path / "small.pt").write_bytes(OTHER)

    assert bring(entry, tmp_path).read_bytes() == CONTENT
    assert "it will be replaced" in caplog.text


@pytest.mark.parametrize(
    "content", [CONTENT + b"more", CONTENT[:-1000], OTHER], ids=["long", "short", "changed"]
)
@pytest.mark.parametrize("announce_size", [True, False])
def test_file_that_differs_from_the_published_one_is_removed(
    entry, tmp_path, server, content, announce_size
):
    server.content, server.announce_size = content, announce_size

    with pytest.raises(ModelError, match=r"does not send the .* published SHA-256"):
        bring(entry, tmp_path)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("announce_size", [True, False])
def test_broken_connection_leaves_nothing_behind(entry, tmp_path, server, announce_size):
    server.drop_after, server.announce_size = [HALF], announce_size
    with pytest.raises(ModelError, match="--from"):
        bring(entry, tmp_path)
    assert names_in(tmp_path) == []

    assert bring(entry, tmp_path).read_bytes() == CONTENT


def test_file_under_the_name_stays_until_the_right_one_is_whole(entry, tmp_path, server):
    (tmp_path / "small.pt").write_bytes(OTHER)
    server.statuses = [503]

    with pytest.raises(ModelError, match="answers 503"):
        bring(entry, tmp_path)
    assert (tmp_path / "small.pt").read_bytes() == OTHER


def test_wrong_content_is_refused_and_the_next_try_starts_clean(entry, tmp_path, server):
    server.content = OTHER
    with pytest.raises(ModelError, match="SHA-256"):
        bring(entry, tmp_path)
    assert names_in(tmp_path) == []

    server.content = CONTENT
    assert bring(entry, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_missing_file_is_not_asked_for_again(entry, tmp_path, server):
    server.statuses = [404]

    with pytest.raises(ModelError) as refusal:
        bring(entry, tmp_path)
    assert str(refusal.value).startswith(f"{entry.urls[0]}: the server answers 404 Not Found. ")
    assert "--from" in refusal.value.remedy
    assert len(server.asked) == 1


def test_second_address_serves_where_the_first_has_nothing(entry, tmp_path, server):
    server.statuses = [404]
    entry = replace(entry, urls=(server.url("gone.pt"), server.url("here.pt")))

    path = bring(entry, tmp_path)

    assert path.read_bytes() == CONTENT
    assert json.loads(record_path(path).read_text())["source"] == server.url("here.pt")


def test_offline_names_every_address_and_the_way_out(entry, tmp_path):
    with serving(FileServer(b"")) as gone:
        urls = (gone.url("a.pt"), gone.url("b.pt"))

    with pytest.raises(ModelError) as refusal:
        bring(replace(entry, urls=urls), tmp_path)
    message = str(refusal.value)
    assert all(f"{url}: cannot be reached (" in message for url in urls)
    assert "a mirror or a file that was downloaded elsewhere with --from" in message
    assert "\n" not in message


def test_mirror_replaces_the_official_address_and_its_token_stays_secret(entry, tmp_path, server):
    mirror = server.url("mirror.pt")

    path = bring(replace(entry, urls=()), tmp_path, source=f"{mirror}?token=secret")

    assert path.read_bytes() == CONTENT
    assert json.loads(record_path(path).read_text())["source"] == mirror


def test_token_of_a_mirror_is_not_in_the_error(entry, tmp_path, server, caplog):
    server.statuses = [403]

    with pytest.raises(ModelError, match="403") as refusal:
        bring(entry, tmp_path, source=server.url("mirror.pt?token=secret"))
    assert "secret" not in str(refusal.value) + caplog.text


@pytest.mark.parametrize("as_given", [lambda path: path, str, lambda path: path.as_uri()])
def test_local_file_is_copied_without_a_request(entry, tmp_path, server, as_given):
    stick = tmp_path / "stick with blank" / "downloaded.pt"
    stick.parent.mkdir()
    stick.write_bytes(CONTENT)

    path = bring(entry, tmp_path / "sam2", source=as_given(stick))

    assert path.read_bytes() == CONTENT
    assert stick.exists()
    assert json.loads(record_path(path).read_text())["source"] == str(stick)
    assert server.asked == []


@pytest.mark.parametrize("content", [None, b"short", OTHER])
def test_unusable_local_file_is_named_and_nothing_is_written(entry, tmp_path, content):
    source = tmp_path / "downloaded.pt"
    if content is not None:
        source.write_bytes(content)

    with pytest.raises(ModelError, match="revision 0123abc") as refusal:
        bring(entry, tmp_path / "sam2", source=source)
    assert refusal.value.subject == str(source)
    assert not (tmp_path / "sam2").exists()


def test_folder_in_place_of_the_local_file_is_called_one(entry, tmp_path):
    with pytest.raises(ModelError, match="is a folder"):
        bring(entry, tmp_path / "to", source=tmp_path)


@pytest.mark.parametrize("source", ["ftp://mirror.example/f.pt", "http://", "https://[bad/f.pt"])
def test_source_of_another_kind_is_a_usage_error(entry, tmp_path, source):
    with pytest.raises(UsageError, match="neither a file nor an http"):
        bring(entry, tmp_path, source=source)


def test_password_in_an_address_is_refused_and_not_repeated(entry, tmp_path):
    with pytest.raises(UsageError) as refusal:
        bring(entry, tmp_path, source="https://me:hush@mirror.example/f.pt")
    assert refusal.value.subject == "mirror.example"
    assert "hush" not in str(refusal.value)


def test_too_small_a_disk_is_noticed_before_anything_is_asked(entry, tmp_path, server):
    with pytest.raises(OutputError, match=r"MB are needed .* --to"):
        bring(replace(entry, size_bytes=10**18), tmp_path)
    assert server.asked == []


def test_folder_that_cannot_be_made_is_an_output_error(entry, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="A part of the path is a file"):
        bring(entry, tmp_path / "file" / "sam2")
