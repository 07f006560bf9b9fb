import sys
import time

from tiny_training import read_curves

from sslmedsam2.nnunet.trainer import Curves


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
    # TensorBoard orders files by the second of their names; a killed training takes longer.
    time.sleep(1.1)
    after = Curves(tmp_path, first_epoch=2)
    after.add(2, {"loss/train": 0.5})
    after.close()

    assert read_curves(tmp_path)["loss/train"] == [(0, 1.0), (1, 1.0), (2, 0.5)]


def test_nothing_is_written_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    curves = Curves(tmp_path, first_epoch=0)
    curves.add(0, {"loss/train": 1.0})
    curves.close()

    assert not any(tmp_path.iterdir())
