"""Networks that are built once for all few-shot tests."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="session")
def tiny_sam2():
    from tiny_sam2 import tiny_compact

    return tiny_compact()


@pytest.fixture(scope="session")
def official_sam2():
    from tiny_sam2 import tiny_official

    return tiny_official()
