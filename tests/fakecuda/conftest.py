"""Installs the fake CUDA device where its tests, and no others, were asked for."""

import sys
from pathlib import Path

import pytest
import torch

import fakecuda

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent / "fewshot"))  # strategy_samples
_OTHERS_TOO = "the fake CUDA device changes the whole process: pytest tests/fakecuda, by itself"


def pytest_configure(config):
    paths = [Path(str(argument).partition("::")[0]).resolve() for argument in config.args]
    alone = bool(paths) and all(path.is_relative_to(_HERE) for path in paths)
    config.stash[_REASON] = _OTHERS_TOO if not alone else fakecuda.why_not()
    if config.stash[_REASON] is None:
        # Autograd counts the devices once, at the first backward pass.
        fakecuda.install(devices=2)
        # With networks this small more threads only wait for each other.
        torch.set_num_threads(1)


_REASON = pytest.StashKey[str | None]()


def pytest_collection_modifyitems(config, items):
    reason = config.stash[_REASON]
    for item in items:
        if reason is not None and _HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _sound_device(monkeypatch):
    """Begin each test with a card that works and has memory, and one that is yet to be tried."""
    from sslmedsam2.inference import device

    fakecuda.install(devices=2)
    fakecuda.reset()
    device._fault_of_convolution.cache_clear()
    device._usual_device.cache_clear()
    # The fake device needs no driver.
    monkeypatch.setattr(device, "has_cuda_driver", lambda: True)
    yield
    fakecuda.reset()
