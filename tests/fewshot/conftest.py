"""Networks that are built once for all few-shot tests."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """Spare tiny tensors the threads that would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_sam2():
    from tiny_sam2 import tiny_compact

    return tiny_compact()


@pytest.fixture(scope="session")
def official_sam2():
    from tiny_sam2 import tiny_official

    return tiny_official()
