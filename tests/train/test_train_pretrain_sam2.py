"""Pretraining from the first step to a file that loads, with a kill on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from safetensors import safe_open
from tiny_scans import small_abdomen

from sslmedsam2.errors import InputError, ModelError, UsageError
from sslmedsam2.fewshot.checkpoint import load_sam2
from sslmedsam2.fewshot.pretraining import CHECKPOINT_NAME
from sslmedsam2.train.pretrain_sam2 import PretrainOptions, pretrain_sam2

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def options(tmp_path):
    """Two steps at the smallest size."""
    return PretrainOptions(
        work_dir=tmp_path / "work",
        output_path=tmp_path / "out" / "net.safetensors",
        steps=2,
        image_size=64,
        device="cpu",
    )


def stop_after_first_checkpoint(options):
    """Run the same training in another process that saves after each step, and kill it."""
    code = (
        "import torch, sys\n"
        "from pathlib import Path\n"
        "from sslmedsam2.fewshot.checkpoint import CompactArchitecture\n"
        "from sslmedsam2.fewshot.pretraining import PretrainSettings, pretrain\n"
        "from sslmedsam2.fewshot.synthetic import SyntheticTask\n"
        "torch.set_num_threads(1)\n"
        f"settings = PretrainSettings(CompactArchitecture(image_size={options.image_size}),\n"
        f"    SyntheticTask(image_size={options.image_size}), steps={options.steps},\n"
        "    save_every_s=0.0)\n"
        "pretrain(settings, work_dir=Path(sys.argv[1]), device=torch.device('cpu'))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(options.work_dir)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    while not (options.work_dir / CHECKPOINT_NAME).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return torch.load(options.work_dir / CHECKPOINT_NAME, weights_only=True)["step"]


def weights_of(path):
    return load_sam2(path, device=torch.device("cpu")).model.state_dict()


def test_a_killed_training_goes_on_to_the_same_network(options, tmp_path):
    whole = replace(options, work_dir=tmp_path / "whole", output_path=tmp_path / "w.safetensors")
    options.work_dir.mkdir()
    done = stop_after_first_checkpoint(options)

    resumed = weights_of(pretrain_sam2(options))
    straight = weights_of(pretrain_sam2(whole))

    assert 1 <= done <= options.steps
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value)
    with safe_open(options.output_path, framework="pt") as file:
        notes = file.metadata()
    assert notes["seed"] == "0"
    assert notes["steps"] == "2"
    assert notes["training_data"] == "synthetic volumes only; no image or mask of a patient"
    assert notes["licence"] == "Apache-2.0"
    assert json.loads(notes["recipe"])["task"]["image_size"] == 64

    with pytest.raises(UsageError, match="other settings \\(seed\\)"):
        pretrain_sam2(replace(options, seed=1))


def test_a_torn_checkpoint_is_an_error_that_says_what_to_do(options):
    options.work_dir.mkdir()
    (options.work_dir / CHECKPOINT_NAME).write_bytes(b"torn")

    with pytest.raises(ModelError, match="begin anew"):
        pretrain_sam2(options)


@pytest.fixture
def scans_with_organs(tmp_path):
    """Two phantoms with a map of organs beside their mask."""
    folder = tmp_path / "organs"
    for seed in range(2):
        image, mask = small_abdomen(seed)
        case = folder / f"case{seed}"
        case.mkdir(parents=True)
        organs = np.where(mask, 1, 0).astype(np.uint8)
        organs[:, -12:, -12:] = 4
        for name, array in (("T2", image), ("mask_T2", mask), ("organs_T2", organs)):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(case / f"{name}.nii.gz"))
    return folder


def test_organs_of_scans_are_part_of_the_recipe(options, scans_with_organs, tmp_path):
    pretrain_sam2(replace(options, steps=1))
    on_top = replace(
        options,
        work_dir=tmp_path / "on_top",
        output_path=tmp_path / "on_top.safetensors",
        start_path=options.output_path,
        organs_dir=scans_with_organs,
        organ_share=1.0,
    )
    pretrain_sam2(on_top)
    with safe_open(on_top.output_path, framework="pt") as file:
        notes = file.metadata()
    assert "organs other than the liver" in notes["training_data"]
    assert notes["licence"] == "the terms of the labelled scans"
    recipe = json.loads(notes["recipe"])
    assert recipe["organ_share"] == 1.0
    assert recipe["start_sha256"]

    with pytest.raises(UsageError, match="other settings"):
        pretrain_sam2(replace(on_top, organs_dir=None))


def test_a_folder_without_maps_of_organs_is_refused(options, scans_with_organs):
    for path in scans_with_organs.rglob("organs_*"):
        path.unlink()
    with pytest.raises(InputError, match="0 of its scans have a map of organs other"):
        pretrain_sam2(replace(options, organs_dir=scans_with_organs))
