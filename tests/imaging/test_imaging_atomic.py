"""A write is whole or leaves no trace."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from held_locks import held_elsewhere

from sslmedsam2.errors import OutputError, UsageError
from sslmedsam2.imaging.atomic import atomic_path, locked, write_bytes_atomic, write_text_atomic


@contextmanager
def small_file_limit() -> Iterator[int]:
    """Let the system refuse files over 4 KiB, as a full disk would.

    No fixture: that would still hold when the test's outcome is written to a log file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_file_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.json"
    write_text_atomic(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert [child.name for child in path.parent.iterdir()] == ["report.json"]


def test_final_name_is_free_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    with atomic_path(path) as partial:
        partial.write_bytes(b"whole")
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        assert partial.name.endswith(".nii.gz")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "mask.nii.gz"
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file), path.exists())))

    write_bytes_atomic(path, b"whole")

    [(synced, was_there)] = seen
    assert os.path.samestat(synced, path.stat())
    assert synced.st_size == len(b"whole")
    assert not was_there


def test_failure_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_path(path) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError) as caught:
        write_bytes_atomic(tmp_path / "out" / "mask.nii.gz", b"x")
    assert str(tmp_path / "out" / "mask.nii.gz") in str(caught.value)
    assert "A part of the path is a file" in caught.value.remedy


def test_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").mkdir()
    with pytest.raises(OutputError):
        write_bytes_atomic(tmp_path / "mask.nii.gz", b"x")
    assert [child.name for child in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_refused_by_the_system_half_way(tmp_path: Path) -> None:
    with small_file_limit() as limit, pytest.raises(OutputError) as caught:
        write_bytes_atomic(tmp_path / "mask.nii.gz", bytes(limit + 1))
    assert "raise the limit" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_has_locked_is_refused_until_that_ends(tmp_path):
    with (
        held_elsewhere(tmp_path),
        pytest.raises(UsageError, match=f"{tmp_path}: another process is writing there"),
        locked(tmp_path),
    ):
        pass

    # It was killed, and left its file.
    assert (tmp_path / ".lock").is_file()
    with locked(tmp_path):
        assert (tmp_path / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_for_a_lock_goes_with_it_if_it_is_empty(tmp_path):
    with locked(tmp_path / "empty"):
        pass
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()

    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]


def test_a_folder_that_cannot_be_locked_for_want_of_rights_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "file" / "out"):
        pass
