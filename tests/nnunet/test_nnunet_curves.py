import logging
import sys

from tiny_training import read_curves

from sslmedsam2.nnunet.curves import Curves


def test_curves_can_be_read_while_they_grow(tmp_path):
    curves = Curves(tmp_path, first_epoch=0)
    curves.add(0, {"loss/train": 1.0, "pseudo_dice": 0.25})
    curves.add(1, {"loss/train": 0.5, "pseudo_dice": 0.5})

    assert read_curves(tmp_path) == {
        "loss/train": [(0, 1.0), (1, 0.5)],
        "pseudo_dice": [(0, 0.25), (1, 0.5)],
    }
    curves.close()


def test_epochs_that_a_kill_undid_are_shown_once(tmp_path):
    before = Curves(tmp_path, first_epoch=0)
    for epoch in range(3):
        before.add(epoch, {"loss/train": 1.0})
    before.close()
    after = Curves(tmp_path, first_epoch=2)
    after.add(2, {"loss/train": 0.5})
    after.close()

    assert read_curves(tmp_path)["loss/train"] == [(0, 1.0), (1, 1.0), (2, 0.5)]


def test_nothing_is_written_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    curves = Curves(tmp_path, first_epoch=0)
    curves.add(0, {"loss/train": 1.0})
    curves.close()

    assert not any(tmp_path.iterdir())


def test_a_training_goes_on_without_curves_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path):
        with caplog.at_level(logging.WARNING):
            curves = Curves(folder, first_epoch=0)
        if folder == tmp_path:
            # A disk that is full by now.
            curves._file = open("/dev/full", "wb")  # noqa: PTH123, SIM115
        curves.add(0, {"loss/train": 1.0})
        curves.add(1, {"loss/train": 1.0})
        curves.close()

    assert [record.getMessage()[:28] for record in caplog.records] == [
        "no more curves for TensorBoa"
    ] * 2
