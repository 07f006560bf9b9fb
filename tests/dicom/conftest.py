import pytest

# The extra is not installed where its packages have no build.
pytest.importorskip("highdicom", reason="needs the extra [dicom]")
