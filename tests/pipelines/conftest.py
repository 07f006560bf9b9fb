import pytest


@pytest.fixture
def workplace(tmp_path, bright_model):
    """An empty input folder and a small model, ready to predict."""
    from predict_samples import Workplace

    return Workplace(tmp_path, bright_model)


@pytest.fixture(scope="session")
def small_sam2(tmp_path_factory):
    """Make the file of a small SAM2 of random weights."""
    from pseudo_label_samples import small_sam2

    return small_sam2(tmp_path_factory.mktemp("sam2") / "small.safetensors")


@pytest.fixture
def one_thread():
    """Let torch use one thread: with networks this small more only wait for each other."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
