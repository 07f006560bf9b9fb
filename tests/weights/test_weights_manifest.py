import hashlib
import json
import shutil

import pytest

from sslmedsam2.errors import ExitCode, ModelError
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.weights.locate import SHIPPED_DIR
from sslmedsam2.weights.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    verify,
    verify_sam2,
    write_manifest,
)


@pytest.fixture
def manifest_path(weights_dir):
    return weights_dir / "manifest.json"


@pytest.fixture
def entry(manifest_path):
    return read_manifest(manifest_path).models[0]


def test_sha256_of_a_file_longer_than_one_chunk(tmp_path):
    content = bytes(range(256)) * 5000
    path = tmp_path / "file"
    path.write_bytes(content)

    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_written_manifest_is_read_back_equal(entry, tmp_path):
    path = tmp_path / "copy.json"
    write_manifest(Manifest((entry,)), path)

    assert read_manifest(path) == Manifest((entry,))


def test_unchanged_model_passes(weights_dir, entry):
    (weights_dir / "liver" / ".DS_Store").write_bytes(b"left by a file browser")

    verify(weights_dir / "liver", entry)


def test_one_changed_byte_is_refused(weights_dir, entry):
    path = weights_dir / "liver" / "fold_1" / "checkpoint_final.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match=r"fold_1/checkpoint_final\.pth: its content was altered"):
        verify(weights_dir / "liver", entry)


def test_incomplete_copy_is_refused(weights_dir, entry):
    path = weights_dir / "liver" / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ModelError, match="the copy is incomplete"):
        verify(weights_dir / "liver", entry)


def test_missing_file_is_refused(weights_dir, entry):
    (weights_dir / "liver" / "plans.json").unlink()

    with pytest.raises(ModelError, match=r"plans\.json: it is missing") as refusal:
        verify(weights_dir / "liver", entry)
    assert refusal.value.exit_code == ExitCode.MODEL_INVALID


def test_additional_file_is_refused(weights_dir, entry):
    shutil.copytree(weights_dir / "liver" / "fold_0", weights_dir / "liver" / "fold_2")

    with pytest.raises(ModelError, match=r"fold_2/checkpoint_final\.pth: the manifest does not"):
        verify(weights_dir / "liver", entry)


def test_unknown_keys_are_passed_over(manifest_path, entry):
    content = json.loads(manifest_path.read_text())
    content["comment"] = content["models"][0]["comment"] = "of a later program"
    manifest_path.write_text(json.dumps(content))

    assert read_manifest(manifest_path).models == (entry,)


def test_folds_written_as_numbers_are_read_as_names(manifest_path):
    content = json.loads(manifest_path.read_text())
    content["models"][0]["folds"] = [0, 1]
    manifest_path.write_text(json.dumps(content))

    assert read_manifest(manifest_path).models[0].folds == ("0", "1")


_FAULTS = {
    "no model": (lambda m: m["models"].clear(), "it lists no model"),
    "models no list": (lambda m: m.update(models={}), "models: Expected 'array', got 'object'"),
    "model no table": (
        lambda m: m["models"].append("liver"),
        "models[1]: Expected 'object', got 'str'",
    ),
    "newer format": (lambda m: m.update(format_version=2), "format version is 2"),
    "no name": (
        lambda m: m["models"][0].pop("name"),
        "models[0]: Object missing required field 'name'",
    ),
    "name outside": (lambda m: m["models"][0].update(name="../liver"), "no plain folder name"),
    "twice": (lambda m: m["models"].append(m["models"][0]), "two models are named 'liver'"),
    "no sequence": (lambda m: m["models"][0].update(sequences=[]), "'sequences' of model liver"),
    "odd sequence": (
        lambda m: m["models"][0].update(sequences=[4]),
        "models[0].sequences[0]: Expected",
    ),
    "no fold": (lambda m: m["models"][0].update(folds=[]), "model liver has no fold"),
    "fold not listed": (
        lambda m: m["models"][0].update(folds=["0", "1", "2"]),
        "does not list fold_2/checkpoint_final.pth",
    ),
    "path outside": (
        lambda m: m["models"][0]["files"][0].update(path="../../etc/passwd"),
        "no plain path inside the model folder",
    ),
    "size no number": (
        lambda m: m["models"][0]["files"][0].update(bytes="9"),
        "files[0].bytes: Expected 'int'",
    ),
    "hash too short": (lambda m: m["models"][0]["files"][0].update(sha256="ab"), "64 hexadecimal"),
    "no licence": (
        lambda m: m["models"][0].pop("licence"),
        "models[0]: Object missing required field 'licence'",
    ),
    "odd figure": (
        lambda m: m["models"][0].update(measured={"dice": "good"}),
        "models[0].measured",
    ),
}


@pytest.mark.parametrize(("damage", "complaint"), _FAULTS.values(), ids=_FAULTS)
def test_faulty_manifest_is_refused_by_name(manifest_path, damage, complaint):
    content = json.loads(manifest_path.read_text())
    damage(content)
    manifest_path.write_text(json.dumps(content))

    with pytest.raises(ModelError) as refusal:
        read_manifest(manifest_path)
    assert complaint in refusal.value.reason
    assert refusal.value.subject == str(manifest_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1', "\x00"])
def test_file_that_is_no_manifest_is_refused(manifest_path, text):
    manifest_path.write_text(text)

    with pytest.raises(ModelError, match=r"manifest\.json"):
        read_manifest(manifest_path)


def test_contradictory_manifest_is_not_written(manifest_path, entry):
    before = manifest_path.read_bytes()

    with pytest.raises(ModelError, match="two models are named"):
        write_manifest(Manifest((entry, entry)), manifest_path)
    assert manifest_path.read_bytes() == before


def test_the_shipped_sam2_is_listed_and_an_altered_copy_is_refused(tmp_path):
    folder = tmp_path / "weights"
    (folder / "sam2-compact").mkdir(parents=True)
    for name in (MANIFEST_NAME, "sam2-compact/sam2-compact.safetensors"):
        shutil.copy(SHIPPED_DIR / name, folder / name)

    [listed] = verify_sam2(folder)
    assert listed.path == "sam2-compact/sam2-compact.safetensors"

    with (folder / listed.path).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ModelError, match="the copy is incomplete or altered"):
        verify_sam2(folder)
