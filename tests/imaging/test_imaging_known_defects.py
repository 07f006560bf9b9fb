"""Files of the kinds that broke other readers: each is refused in one line, or read right."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from bad_inputs import noise
from known_defects import DEFECTS

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.reading import read_volume

MOST_SECONDS = 2.0
MOST_BYTES = 16 * 2**20


@pytest.mark.parametrize("name", DEFECTS)
def test_known_defect_is_refused_in_one_line_or_read_right(tmp_path, name):
    defect = DEFECTS[name]
    path = defect.write(tmp_path)
    started = time.process_time()
    tracemalloc.start()
    try:
        if defect.kind is None:
            np.testing.assert_array_equal(read_volume(path).array_zyx, noise().T)
        else:
            with pytest.raises(InputError) as caught:
                read_volume(path)
            assert caught.value.kind == defect.kind
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300 + len(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert time.process_time() - started < MOST_SECONDS


def test_every_known_defect_names_its_source():
    assert len(DEFECTS) >= 25
    assert all(defect.source for defect in DEFECTS.values())
