"""The options ``--label`` and ``--sequence-map`` reach every command that reads masks."""

import json

import numpy as np
import pytest
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

from sslmedsam2.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two cases with several organs in their masks, and one that is not labelled."""
    root = tmp_path_factory.mktemp("labels")
    for seed, case in enumerate(("1001-A", "1002-A"), start=1):
        image, mask = small_abdomen(seed)
        organs = mask * np.uint8(63)
        organs[0, :5] = 252
        for name, array in {"T2": image, "mask_T2": organs}.items():
            path = root / "labelled" / case / f"{name}.nii.gz"
            dtype = np.uint8 if array is organs else np.int16
            write_scan(path, array, dtype=dtype, affine_ras=SMALL_AFFINE_RAS)
    write_scan(root / "query" / "0001-A" / "T2.nii.gz", small_abdomen(3)[0])
    return root


def _command(name, data, tmp_path):
    labelled, query, out = data / "labelled", data / "query", tmp_path / "out"
    return {
        "train": ["train", "--data", labelled, "--work-dir", out, "--folds", "0"],
        "pseudo-label": ["pseudo-label", "--support", labelled, "--query", query, "--output", out],
        "retrain": [
            *("retrain", "--labelled", labelled, "--unlabelled", query, "--work-dir", out),
            *("--folds", "2", "--device", "cpu"),
        ],
        "evaluate": ["evaluate", "--references", labelled, "--predictions", labelled],
    }[name]


COMMANDS = ("train", "pseudo-label", "retrain", "evaluate")


def _run(arguments, capsys):
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_of_several_organs_are_refused_with_their_values(data, tmp_path, capsys, command):
    code, said = _run(_command(command, data, tmp_path), capsys)

    assert code in (1, 3)
    assert "more than two values (0, 63, 252)" in " ".join(said.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_label_is_looked_for_in_the_masks(data, tmp_path, capsys, command):
    code, said = _run([*_command(command, data, tmp_path), "--label", 7], capsys)

    assert code in (1, 3)
    assert "no voxel has the label 7; it holds the values 0, 63, 252" in " ".join(said.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_sequence_map_may_skip_every_labelled_image(data, tmp_path, capsys, command):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({f"{case}/T2": "skip" for case in ("1001-A", "1002-A")}))

    code, said = _run([*_command(command, data, tmp_path), "--sequence-map", path], capsys)
    assert code in (2, 3)
    assert "more than two values" not in said
    assert any(words in said for words in ("label", "holds no masks"))
