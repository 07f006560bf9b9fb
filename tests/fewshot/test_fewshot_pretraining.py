import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_sam2 import TINY

from sslmedsam2.fewshot import pretraining
from sslmedsam2.fewshot.pretraining import (
    CHECKPOINT_NAME,
    PretrainInputs,
    PretrainSettings,
    pretrain,
)
from sslmedsam2.fewshot.synthetic import SyntheticTask

CPU = torch.device("cpu")
SETTINGS = PretrainSettings(
    architecture=TINY,
    task=SyntheticTask(image_size=64),
    steps=2,
    slices_per_step=3,
    save_every_s=0.0,
    seed=3,
)


def _assert_same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def _checkpoint(folder):
    return torch.load(folder / CHECKPOINT_NAME, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    settings = replace(SETTINGS, save_every_s=1e9)
    return pretrain(settings, work_dir=folder, device=CPU), folder


def test_a_few_steps_move_the_weights_and_keep_them_finite(uninterrupted):
    model, folder = uninterrupted
    assert not model.training
    assert model.image_size == TINY.image_size
    torch.manual_seed(SETTINGS.seed)
    before = pretraining.build_compact(TINY).state_dict()
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    for part in ("image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder"):
        assert any(name.startswith(part) for name in moved), part
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert _checkpoint(folder)["step"] == SETTINGS.steps


def test_shown_one_episode_again_and_again_the_loss_falls(monkeypatch, tmp_path):
    losses = []
    step, draw = pretraining._train_step, pretraining.draw_episode

    def noted(*args, **kwargs):
        losses.append(step(*args, **kwargs))
        return losses[-1]

    def same(task, *, seed, n_support, n_query):  # noqa: ARG001
        return draw(task, seed=1, n_support=2, n_query=n_query)

    monkeypatch.setattr(pretraining, "_train_step", noted)
    monkeypatch.setattr(pretraining, "draw_episode", same)
    # The warm-up makes first steps small; a large rate lets a short training show something.
    settings = replace(SETTINGS, steps=8, learning_rate=0.05, save_every_s=1e9)
    pretrain(settings, work_dir=tmp_path, device=CPU)
    assert len(losses) == 8
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < 0.9 * losses[0]


def test_a_training_starts_from_given_weights_and_uses_labelled_scans(tmp_path, monkeypatch):
    torch.manual_seed(9)
    start = pretraining.build_compact(TINY).state_dict()
    drawn = []

    def from_scans(volumes, *, seed, n_support, n_query):
        drawn.append(volumes)
        return pretraining.draw_episode(
            SETTINGS.task, seed=seed, n_support=n_support, n_query=n_query
        )

    monkeypatch.setattr(pretraining, "draw_organ_episode", from_scans)
    settings = replace(SETTINGS, steps=1, organ_share=1.0, learning_rate=0.0)
    inputs = PretrainInputs(volumes=("scan",), start=start)
    model = pretrain(settings, inputs, work_dir=tmp_path, device=CPU)
    assert drawn
    assert set(drawn) == {("scan",)}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, start[name])


def test_another_seed_gives_other_weights(uninterrupted, tmp_path):
    other = pretrain(replace(SETTINGS, seed=4, save_every_s=1e9), work_dir=tmp_path, device=CPU)
    name = "sam_mask_decoder.mask_tokens.weight"
    assert not torch.equal(other.state_dict()[name], uninterrupted[0].state_dict()[name])


def test_a_stopped_training_goes_on_to_the_same_weights(uninterrupted, tmp_path, monkeypatch):
    steps = []
    step = pretraining._train_step

    def stopping(*args, **kwargs):
        if kwargs["step"] == 1 and 1 not in steps:
            steps.append(1)
            raise KeyboardInterrupt
        steps.append(kwargs["step"])
        return step(*args, **kwargs)

    monkeypatch.setattr(pretraining, "_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain(SETTINGS, work_dir=tmp_path, device=CPU)
    assert _checkpoint(tmp_path)["step"] == 1
    steps_before = len(steps)
    resumed = pretrain(SETTINGS, work_dir=tmp_path, device=CPU)
    assert steps[steps_before:] == [1]
    _assert_same(resumed, uninterrupted[0])


def test_a_finished_training_is_not_repeated(uninterrupted):
    model, folder = uninterrupted
    before = (folder / CHECKPOINT_NAME).read_bytes()
    _assert_same(pretrain(SETTINGS, work_dir=folder, device=CPU), model)
    assert (folder / CHECKPOINT_NAME).read_bytes() == before


@pytest.mark.slow
def test_two_processes_share_a_training(tmp_path):
    model = pretrain(
        replace(SETTINGS, processes=2, slices_per_step=10, steps=3), work_dir=tmp_path, device=CPU
    )
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert _checkpoint(tmp_path)["step"] == 3


def _children(pid):
    """Return the processes that ``pid`` started itself, as /proc tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until(condition):
    """Wait for long, because a step takes minutes on a machine with other work."""
    end = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_processes_of_a_killed_training_end(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from dataclasses import replace
            from pathlib import Path

            sys.path.insert(0, {str(Path(__file__).parent)!r})
            sys.path.insert(0, {str(Path(__file__).parents[1])!r})
            sys.path.insert(0, {str(Path(__file__).parents[2])!r})
            from test_fewshot_pretraining import CPU, SETTINGS, pretrain

            if __name__ == "__main__":
                settings = replace(SETTINGS, processes=2, slices_per_step=10, steps=100_000)
                pretrain(settings, work_dir=Path({str(tmp_path)!r}), device=CPU)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    children = []
    try:
        _wait_until(lambda: (tmp_path / CHECKPOINT_NAME).exists() or parent.poll() is not None)
        assert parent.poll() is None
        children = _children(parent.pid)
        assert len(children) >= 2
        parent.kill()
        parent.wait()
        _wait_until(lambda: not any(_is_running(child) for child in children))
    finally:
        for pid in (parent.pid, *children):
            if _is_running(pid):
                os.kill(pid, signal.SIGKILL)
        parent.wait()
