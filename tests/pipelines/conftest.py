import pytest


@pytest.fixture
def workplace(tmp_path, bright_model):
    """An empty input folder and a small model, ready to predict."""
    from predict_samples import Workplace

    return Workplace(tmp_path, bright_model)
