"""Paths in a folder that the user may not enter: each is named, and nothing else is stopped."""

import os
import tempfile
from pathlib import Path

import pytest

from sslmedsam2.contract.archives import open_archives
from sslmedsam2.contract.walk import require_folder, walk, walk_input
from sslmedsam2.errors import NoInputError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders have no such rights on Windows")
NOBODY = 65534


@pytest.fixture
def root():
    """An input with links into ``secret``, which is closed; the superuser is another user here."""
    is_superuser = os.geteuid() == 0
    # Any user may enter it, as pytest's own folder is not.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        secret = root / "secret"
        for path in (secret / "T1.nii.gz", root / "in" / "P1" / "T2.nii.gz"):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"voxels")
        (root / "in" / "P1" / "T1.nii.gz").symlink_to(secret / "T1.nii.gz")
        secret.chmod(0)
        if is_superuser:
            os.seteuid(NOBODY)
        try:
            yield root
        finally:
            if is_superuser:
                os.seteuid(0)
            secret.chmod(0o700)


def test_a_link_into_a_closed_folder_is_an_error_of_its_own_and_the_others_go_on(root):
    tree = walk(root / "in")

    case = next(folder for folder in tree.folders if folder.path.name == "P1")
    assert [path.name for path in case.volumes] == ["T2.nii.gz"]
    assert [error.kind for error in case.oddities] == ["permission_denied"]
    assert str(case.oddities[0]).startswith(f"{root}/in/P1/T1.nii.gz: may not be read: ")


def test_given_paths_in_a_closed_folder_do_not_stop_the_others(root):
    only = [root / "secret" / "T1.nii.gz", root / "in" / "P1" / "T2.nii.gz"]

    assert [folder.volumes for folder in walk(root, only=only).folders] == [(only[1],)]


@pytest.mark.parametrize("name", ["T1.nii.gz", "T1.zip"])
def test_an_input_in_a_closed_folder_is_not_called_missing(root, name):
    path = root / "secret" / name

    with pytest.raises(NoInputError, match="may not be read"), open_archives(path) as opened:
        walk_input(opened.path)
    with pytest.raises(NoInputError, match="may not be read"):
        require_folder(path)
