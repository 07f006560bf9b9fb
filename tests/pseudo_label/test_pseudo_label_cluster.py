"""``pseudo-label`` on a cluster of processes: the pseudo labels are those of a run without."""

import hashlib
import json

import pytest
from pseudo_label_samples import Workplace, without_times

from sslmedsam2.cli.cluster_option import open_executor

pytest.importorskip("distributed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def workplace(tmp_path, small_sam2):
    """Two supports and four queries, one of which is no image."""
    place = Workplace(tmp_path, small_sam2)
    for seed, case in enumerate(("1001-A-S1", "1002-A-S1"), start=1):
        place.add_support(case, seed=seed)
    for seed in (10, 11, 12):
        place.add_query(f"00{seed}-B1/T2.nii.gz", seed=seed)
    (place.query / "0013-B1").mkdir()
    (place.query / "0013-B1" / "T2.nii.gz").write_bytes(b"no image")
    return place


def left(output):
    """Return the hash of each mask and map, and what the records say without the times."""
    files = {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*.nii.gz")
    }
    records = {
        path.relative_to(output).as_posix(): without_times(json.loads(path.read_text()))
        for path in [*output.rglob("*_pseudo.json"), output / "calibration.json"]
    }
    return files, records


def test_pseudo_labels_are_the_same_to_the_bit(workplace, tmp_path):
    alone = workplace.run()
    output = tmp_path / "cluster"

    with open_executor("local:2") as executor:
        together = workplace.run(output_dir=output, executor=executor)
        again = workplace.run(output_dir=output, executor=executor, resume=True)

    assert left(output) == left(workplace.output)
    assert together.counts == alone.counts
    assert together.exit_code == alone.exit_code
    assert again.kept == 3
