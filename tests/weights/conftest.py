import json

import pytest
from weights_samples import (
    CARD,
    MACHINE_FOLDER,
    Training,
    make_network,
    plans,
    save_like_the_trainer,
)

from sslmedsam2.nnunet.plans import dataset_json
from sslmedsam2.weights.freeze import freeze_model


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """Two folds, trained (not really) to the end."""
    folder = tmp_path_factory.mktemp("results") / "Trainer__Plans__3d_fullres"
    folder.mkdir()
    meta = dataset_json(n_cases=2, labels={"background": 0, "liver": 1})
    meta["dataset"] = {"chaos1": {"images": [f"{MACHINE_FOLDER}/chaos1.nii.gz"]}}
    (folder / "dataset.json").write_text(json.dumps(meta))
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "debug.json").write_text(json.dumps({"output_folder": MACHINE_FOLDER}))
    networks = {fold: make_network(seed=fold) for fold in (0, 1)}
    for fold, network in networks.items():
        save_like_the_trainer(network, folder / f"fold_{fold}" / "checkpoint_final.pth", fold)
    return Training(folder, networks)


@pytest.fixture
def weights_dir(training, tmp_path):
    """A folder of shipped weights with one model, ``liver``, of two folds."""
    folder = tmp_path / "weights"
    freeze_model(training.folder, folder, name="liver", sequences=("*",), card=CARD)
    return folder
