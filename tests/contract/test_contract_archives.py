"""Zip archives: opened as folders, and what is refused of those that could harm."""

import os
import signal
import struct
import tempfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sslmedsam2.contract import archives
from sslmedsam2.contract.archives import open_archives
from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.studies import find_studies
from sslmedsam2.errors import InputError, NoInputError


def write_zip(path, *names, content=b"scan", method=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name in names:
            file.writestr(name, content)
    return path


def found(root, **options):
    """List cases and sequences of an input, with the places that the user would be told."""
    with open_archives(root, **options) as opened:
        return {
            (image.case, image.sequence): image.path.relative_to(opened.path).as_posix()
            for image in find_studies(opened.path, only=opened.only).series
        }


def refusal(path):
    with open_archives(path) as opened:
        assert not opened.unpacked
        [problem] = opened.problems
        message = opened.shown(str(problem))
        assert not any(part.is_file() for part in opened.path.rglob("*"))
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return problem.kind


def test_an_input_without_archives_is_used_as_it_is(tmp_path):
    (tmp_path / "P1").mkdir()

    with open_archives(tmp_path, only=[tmp_path / "P1"]) as opened:
        assert opened.path == tmp_path
        assert opened.only == (tmp_path / "P1",)
        assert opened.shown(f"{tmp_path}: reason") == f"{tmp_path}: reason"


def test_an_archive_is_a_folder_of_its_name(tmp_path):
    write_zip(tmp_path / "in" / "P1.zip", "T1.nii.gz", "T2.nii.gz")
    write_zip(tmp_path / "in" / "Vendor_A" / "more.ZIP", "P2/T2.nii.gz", "P2/mask_T2.nii.gz")
    (tmp_path / "in" / "P3").mkdir()
    (tmp_path / "in" / "P3" / "T2.nii.gz").write_bytes(b"scan")

    assert found(tmp_path / "in") == {
        ("P1", "T1"): "P1.zip/T1.nii.gz",
        ("P1", "T2"): "P1.zip/T2.nii.gz",
        ("P2", "T2"): "Vendor_A/more.ZIP/P2/T2.nii.gz",
        ("P3", "T2"): "P3/T2.nii.gz",
    }


def test_an_input_may_be_an_archive_or_several(tmp_path):
    one = write_zip(tmp_path / "in" / "study.zip", "P1/T2.nii.gz", "scan.mha")
    two = write_zip(tmp_path / "in" / "P2.zip", "T2.nii.gz")
    write_zip(tmp_path / "in" / "P3.zip", "T2.nii.gz")

    expected = {
        ("P1", "T2"): "study.zip/P1/T2.nii.gz",
        ("study_scan", None): "study.zip/scan.mha",
    }
    assert found(one) == expected
    assert found(tmp_path / "in", only=[one, two]) == {
        **expected,
        ("P2", "T2"): "P2.zip/T2.nii.gz",
    }


def test_nothing_is_left_when_the_context_ends_and_the_input_is_untouched(tmp_path):
    archive = write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    before = archive.read_bytes()

    with open_archives(archive, temporary=tmp_path / "out") as opened:
        [scan] = opened.path.rglob("T2.nii.gz")
        assert scan.read_bytes() == b"scan"
        assert scan.is_relative_to(tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "in").iterdir()) == [archive]
    assert archive.read_bytes() == before


def test_an_error_that_leaves_the_context_names_the_path_that_was_given(tmp_path):
    archive = write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")

    def fail():
        with open_archives(archive) as opened:
            path = opened.path / "P1.zip" / "T2.nii.gz"
            raise InputError(path, kind="some", reason="it is bad", remedy="Correct it")

    with pytest.raises(InputError) as caught:
        fail()
    assert str(caught.value) == f"{archive}/T2.nii.gz: it is bad. Correct it."
    assert caught.value.kind == "some"


def test_hidden_members_are_not_unpacked(tmp_path):
    names = ("__MACOSX/P1/._T2.nii.gz", "P1/.DS_Store", "P1/T2.nii.gz")
    with open_archives(write_zip(tmp_path / "a.zip", *names)) as opened:
        files = [path.name for path in opened.path.rglob("*") if path.is_file()]
    assert files == ["T2.nii.gz"]


def test_an_archive_in_an_archive_stays_closed_and_is_reported(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", "T2.nii.gz").read_bytes()
    outer = write_zip(tmp_path / "in" / "outer.zip", "inner.zip", content=inner)

    with open_archives(outer) as opened:
        discovery = find_studies(opened.path)
        [left_out] = discovery.left_out
        assert left_out.path.relative_to(opened.path).as_posix() == "outer.zip/inner.zip"
    assert "archive that is not opened" in left_out.reason
    assert discovery.series == ()


@pytest.mark.parametrize(
    "name",
    ["../out.nii.gz", "P1/../../out.nii.gz", "/etc/out.nii.gz", "..\\out.nii.gz", "C:\\out.nii.gz"],
)
def test_an_archive_whose_members_leave_it_is_refused_as_a_whole(tmp_path, name):
    archive = write_zip(tmp_path / "in" / "bad.zip", "P1/T2.nii.gz", name)

    assert refusal(archive) == "unsafe_archive"
    assert not list(tmp_path.rglob("out.nii.gz"))


def test_an_archive_with_a_link_or_two_files_of_one_name_is_refused(tmp_path):
    link = zipfile.ZipInfo("P1/T2.nii.gz")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "twice.zip", "P1/T2.nii.gz", "P1/T2.nii.gz")

    assert refusal(tmp_path / "link.zip") == "unsafe_archive"
    assert refusal(tmp_path / "twice.zip") == "unsafe_archive"


@pytest.mark.parametrize(
    "names", [("P1", "P1/T2.nii.gz"), ("P1/T2.nii.gz", "P1"), ("x" * 300,), (".",)]
)
def test_an_archive_whose_files_cannot_be_written_harms_no_other(tmp_path, names):
    write_zip(tmp_path / "in" / "bad.zip", *names)
    write_zip(tmp_path / "in" / "good.zip", "T2.nii.gz")

    with open_archives(tmp_path / "in") as opened:
        assert [path.name for path in opened.unpacked] == ["good.zip"]
        assert [problem.kind for problem in opened.problems] == ["unsafe_archive"]


def test_an_encrypted_archive_is_refused(tmp_path):
    archive = write_zip(tmp_path / "locked.zip", "P1/T2.nii.gz")
    content = bytearray(archive.read_bytes())
    # The flags of the local header, and of the central directory.
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)

    assert refusal(archive) == "encrypted_archive"


def test_a_damaged_archive_is_refused(tmp_path):
    cut = write_zip(tmp_path / "cut.zip", "P1/T2.nii.gz")
    cut.write_bytes(cut.read_bytes()[:-30])
    wrong = write_zip(tmp_path / "wrong.zip", "P1/T2.nii.gz")
    wrong.write_bytes(wrong.read_bytes().replace(b"scan", b"scam"))
    (tmp_path / "empty.zip").write_bytes(b"")

    for name in ("cut", "wrong", "empty"):
        assert refusal(tmp_path / f"{name}.zip") == "damaged_archive"


def test_an_archive_whose_files_begin_before_its_start_harms_no_other(tmp_path):
    write_zip(tmp_path / "good.zip", "0001-A/T2.nii.gz")
    bad = write_zip(tmp_path / "bad.zip", "0002-A/T2.nii.gz")
    content = bytearray(bad.read_bytes())
    # Where the list of files begins, by the record at the end of 22 bytes.
    content[-6:-2] = (int.from_bytes(content[-6:-2], "little") + 10).to_bytes(4, "little")
    bad.write_bytes(content)

    with open_archives(tmp_path) as opened:
        assert [folder.name for folder in opened.unpacked] == ["good.zip"]
        assert [problem.kind for problem in opened.problems] == ["damaged_archive"]


def test_an_archive_with_a_name_that_is_no_text_harms_no_other(tmp_path):
    write_zip(tmp_path / "good.zip", "0001-A/T2.nii.gz")
    bad = write_zip(tmp_path / "bad.zip", "0002-\xc4/T2.nii.gz")
    # The name before the file itself, not that in the list of files.
    bad.write_bytes(bad.read_bytes().replace("\xc4".encode(), b"\x80\x80", 1))

    with open_archives(tmp_path) as opened:
        assert [folder.name for folder in opened.unpacked] == ["good.zip"]
        assert [problem.kind for problem in opened.problems] == ["damaged_archive"]


def test_an_archive_with_a_file_without_a_name_harms_no_other(tmp_path):
    write_zip(tmp_path / "good.zip", "0001-A/T2.nii.gz")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(zipfile.ZipInfo(""), b"scan")

    with open_archives(tmp_path) as opened:
        assert [folder.name for folder in opened.unpacked] == ["good.zip"]
        assert [problem.kind for problem in opened.problems] == ["unsafe_archive"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    bomb = write_zip(
        tmp_path / "bomb.zip", "T2.nii.gz", content=bytes(10**7), method=zipfile.ZIP_DEFLATED
    )
    monkeypatch.setattr(archives, "_SMALL_BYTES", 10**6)
    assert refusal(bomb) == "unsafe_archive"

    many = write_zip(tmp_path / "many.zip", "a", "b", "c")
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 2)
    assert refusal(many) == "large_archive"

    large = write_zip(tmp_path / "large.zip", "T2.nii.gz", content=bytes(2000))
    monkeypatch.setattr(archives, "_MOST_BYTES", 1000)
    assert refusal(large) == "large_archive"


def test_the_limit_is_for_all_archives_of_an_input_together(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_BYTES", 1000)
    for name in ("P1", "P2", "P3"):
        write_zip(tmp_path / "in" / f"{name}.zip", "T2.nii.gz", content=bytes(400))

    with open_archives(tmp_path / "in") as opened:
        assert [path.name for path in opened.unpacked] == ["P1.zip", "P2.zip"]
        assert [problem.kind for problem in opened.problems] == ["large_archive"]


def test_a_missing_input_is_left_to_whoever_looks_for_studies(tmp_path):
    with (
        pytest.raises(NoInputError, match="does not exist"),
        open_archives(tmp_path / "no") as opened,
    ):
        find_studies(opened.path)


def test_an_archive_among_labelled_images_is_reported(tmp_path, caplog):
    for name in ("T2.nii.gz", "mask_T2.nii.gz"):
        (tmp_path / "P1").mkdir(exist_ok=True)
        (tmp_path / "P1" / name).touch()
    archive = write_zip(tmp_path / "P2.zip", "T2.nii.gz", "mask_T2.nii.gz")

    assert [image.case for image in find_labelled_series(tmp_path)] == ["P1"]
    assert [record.message for record in caplog.records] == [
        f"{archive} is left out: it is an archive that is not opened here; unpack it"
    ]


def test_pictures_of_a_results_page_are_not_left_out_images(tmp_path):
    for name in ("P1/T2.nii.gz", "out/report/run_report.json", "out/report/cases/0001.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert find_studies(tmp_path).left_out == ()


def test_a_link_to_an_archive_is_not_opened_a_second_time(tmp_path):
    archive = write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    (tmp_path / "in" / "A.zip").symlink_to(archive)

    assert found(tmp_path / "in") == {("P1", "T2"): "P1.zip/T2.nii.gz"}


@pytest.mark.parametrize("stated", [1, 2**32 - 2])
def test_a_size_that_an_archive_tells_is_not_trusted(tmp_path, stated):
    """CVE-2026-5439: Orthanc took memory for the size that a zip archive stated."""
    content = bytes(range(256)) * 40
    path = write_zip(tmp_path / "a.zip", "T2.nii.gz", content=content, method=zipfile.ZIP_DEFLATED)
    true, false = (struct.pack("<I", size) for size in (len(content), stated))
    path.write_bytes(path.read_bytes().replace(true, false))
    tracemalloc.start()

    assert refusal(path) in ("damaged_archive", "unsafe_archive")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_folder_and_an_archive_in_it_are_used_whole(tmp_path):
    archive = write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    (tmp_path / "in" / "P2").mkdir()
    (tmp_path / "in" / "P2" / "T2.nii.gz").write_bytes(b"scan")

    assert found(tmp_path / "in", only=[tmp_path / "in", archive]) == found(tmp_path / "in")


def test_links_to_folders_above_the_input_are_not_followed_beside_an_archive(tmp_path):
    (tmp_path / "T1.nii.gz").write_bytes(b"scan")
    write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    (tmp_path / "in" / "P2").mkdir()
    (tmp_path / "in" / "P2" / "T2.nii.gz").write_bytes(b"scan")
    (tmp_path / "in" / "P2" / "up").symlink_to("../..")
    (tmp_path / "in" / "above").symlink_to("..")

    assert set(found(tmp_path / "in")) == {("P1", "T2"), ("P2", "T2")}


def test_a_problem_of_an_archive_in_the_working_folder_names_it(tmp_path, monkeypatch):
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    monkeypatch.chdir(tmp_path)

    with open_archives(Path()) as opened:
        [problem] = opened.problems
        assert Path(problem.subject) == opened.path / "bad.zip"


def test_a_link_to_itself_beside_an_archive_is_reported_like_any_other(tmp_path):
    write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    (tmp_path / "in" / "P2").mkdir()
    for name in ("T1.nii.gz", "P2/T2.nii.gz"):
        (tmp_path / "in" / name).symlink_to(name.rpartition("/")[2])

    with open_archives(tmp_path / "in") as opened:
        studies = find_studies(opened.path)
    assert [image.case for image in studies.series] == ["P1"]
    assert {problem.kind for problem in studies.problems} == {"broken_link"}


@pytest.fixture
def sigterm():
    """Give SIGTERM its default handler, whatever runs the tests."""
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, former)


def raise_sigterm():
    # With the default handler this would end the tests.
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("sigterm")
def test_sigterm_leaves_nothing_of_what_is_unpacked(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "in" / "P1.zip", "T2.nii.gz")
    unpacked = []

    def unpack_half(_archive, target):
        target.mkdir()
        (target / "T2.nii.gz").write_bytes(b"scan")
        unpacked.extend((tmp_path / "out").rglob("T2.nii.gz"))
        raise_sigterm()

    monkeypatch.setattr(archives, "_unpack", unpack_half)
    with pytest.raises(SystemExit) as ended, open_archives(archive, temporary=tmp_path / "out"):
        pass

    assert ended.value.code == 143
    assert unpacked
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("sigterm")
def test_a_handler_that_is_there_stays(tmp_path):
    archive = write_zip(tmp_path / "P1.zip", "T2.nii.gz")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open_archives(archive):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.usefixtures("sigterm")
def test_a_handler_that_came_later_stays(tmp_path):
    with open_archives(write_zip(tmp_path / "P1.zip", "T2.nii.gz")):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.usefixtures("sigterm")
def test_sigterm_to_a_forked_process_ends_it_and_removes_nothing(tmp_path):
    with open_archives(write_zip(tmp_path / "P1.zip", "T2.nii.gz")) as opened:
        child = os.fork()
        if child == 0:
            try:
                raise_sigterm()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert list(opened.path.rglob("T2.nii.gz"))


def test_archives_are_opened_in_any_thread(tmp_path):
    archive = write_zip(tmp_path / "P1.zip", "T2.nii.gz")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(found, archive).result() == {("P1", "T2"): "P1.zip/T2.nii.gz"}


@pytest.mark.skipif(os.name == "nt", reason="folders have no such rights on Windows")
def test_a_folder_whose_files_may_not_be_looked_at_is_no_error_of_the_temporary_folder():
    # Any user may enter it, as pytest's own folder is not.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = write_zip(root / "in" / "P1.zip", "T2.nii.gz")
        (root / "in" / "T1.nii.gz").symlink_to("elsewhere.nii.gz")
        root.chmod(0o755)
        (root / "in").chmod(0o444)
        is_superuser = os.geteuid() == 0
        if is_superuser:
            os.seteuid(65534)
        try:
            with open_archives(root / "in") as opened:
                assert [problem.kind for problem in opened.problems] == ["damaged_archive"]
                assert Path(opened.problems[0].subject).name == archive.name
        finally:
            if is_superuser:
                os.seteuid(0)
            (root / "in").chmod(0o755)
