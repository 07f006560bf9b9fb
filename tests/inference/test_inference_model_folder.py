"""Which nnU-Net model folders are read, and how the others are refused."""

import json
import pickle

import pytest
import torch
from tiny_models import make_network, make_plans, write_model

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.inference.model_folder import Resampling, load_checkpoint, read_model_spec
from sslmedsam2.inference.network import build_margin_network
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.weights import manifest
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import ModelCard

CHECKPOINT = "fold_0/checkpoint_final.pth"


@pytest.fixture
def model(tmp_path):
    plans = make_plans()
    return write_model(tmp_path / "model", plans, {"0": make_network(plans, seed=0)})


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def load_all(folder):
    """Go all the way from a folder to a network."""
    spec = read_model_spec(folder)
    return [build_margin_network(spec, load_checkpoint(spec, fold)) for fold in spec.folds]


def test_the_description_is_that_of_the_plans(tmp_path):
    plans = make_plans(spacing_mm=(6.0, 2.0, 3.0), transpose_forward=(2, 0, 1))
    networks = {"0": make_network(plans, seed=0)}
    folder = write_model(tmp_path / "model", plans, networks, mirror_axes=(0, 2))

    spec = read_model_spec(folder)

    assert spec.folds == ("0",)
    assert spec.configuration == "3d_fullres"
    assert spec.transpose_forward == (2, 0, 1)
    assert spec.spacing_mm == (6.0, 2.0, 3.0)
    assert spec.patch_size == (16, 32, 32)
    assert spec.normalization == "ZScoreNormalization"
    assert spec.image_resampling == Resampling(order=3, order_z=1, force_separate_z=None)
    assert spec.logit_resampling == Resampling(order=1, order_z=1, force_separate_z=None)
    assert load_checkpoint(spec, "0").mirror_axes == (0, 2)


def test_the_folds_asked_for_are_used(tmp_path):
    plans = make_plans()
    networks = {name: make_network(plans, seed=0) for name in ("0", "1", "all")}
    folder = write_model(tmp_path / "model", plans, networks)

    assert read_model_spec(folder).folds == ("0", "1")
    assert read_model_spec(folder, folds=("all",)).folds == ("all",)


def test_a_configuration_inherits_what_it_does_not_say(model):
    def inherit(plans):
        configurations = plans["configurations"]
        configurations["base"] = configurations.pop("3d_fullres")
        configurations["3d_fullres"] = {"inherits_from": "base", "spacing": [4.0, 3.0, 3.0]}

    edit_json(model / "plans.json", inherit)

    spec = read_model_spec(model)

    assert spec.spacing_mm == (4.0, 3.0, 3.0)
    assert spec.patch_size == (16, 32, 32)


@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans")
def test_plans_from_before_nnunet_stored_architectures_are_translated(model):
    def age(plans):
        entry = plans["configurations"]["3d_fullres"]
        kwargs = entry.pop("architecture")["arch_kwargs"]
        entry.update(
            UNet_class_name="PlainConvUNet",
            num_pool_per_axis=[0, 1, 1],
            UNet_base_num_features=6,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=kwargs["n_conv_per_stage"],
            n_conv_per_stage_decoder=kwargs["n_conv_per_stage_decoder"],
            pool_op_kernel_sizes=kwargs["strides"],
            conv_kernel_sizes=kwargs["kernel_sizes"],
        )

    modern = read_model_spec(model)
    edit_json(model / "plans.json", age)

    spec = read_model_spec(model)

    assert spec.architecture.class_name.endswith("PlainConvUNet")
    assert spec.architecture.kwargs["strides"] == modern.architecture.kwargs["strides"]


def test_an_ignore_label_is_no_second_class(model):
    edit_json(model / "dataset.json", lambda meta: meta["labels"].update(ignore=2))

    assert read_model_spec(model).folds == ("0",)


@pytest.mark.parametrize("name", ["dataset.json", "plans.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}", b"[" * 100_000]
)
def test_missing_and_garbled_descriptions_are_named(model, name, content):
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)

    with pytest.raises(ModelError, match=name):
        read_model_spec(model)


def configuration(**changes):
    return lambda plans: plans["configurations"]["3d_fullres"].update(changes)


UNSUPPORTED_PLANS = {
    "a 2-D configuration": configuration(patch_size=[64, 64], spacing=[2.0, 2.0]),
    "a cascade": configuration(previous_stage="3d_lowres"),
    "resampling function 'resample_torch_fornnunet'": configuration(
        resampling_fn_data="resample_torch_fornnunet"
    ),
    "KeyError('transpose_forward')": lambda plans: plans.pop("transpose_forward"),
    "KeyError('3d_fullres')": lambda plans: plans["configurations"].clear(),
    "RecursionError": configuration(inherits_from="3d_fullres"),
    "lacks or garbles": configuration(patch_size=[16, "wide", 32]),
    "OverflowError": configuration(patch_size=[16, float("inf"), 32]),
    "patch_size (16, 0, 32)": configuration(patch_size=[16, 0, 32]),
    "patch_size (4096, 4096, 4096)": configuration(patch_size=[4096] * 3),
    "spacing (8.0, nan, 8.0)": configuration(spacing=[8, float("nan"), 8]),
    "transpose_forward (0, 0, 127)": lambda plans: plans.update(transpose_forward=[0, 0, 127]),
}


@pytest.mark.parametrize("reason", UNSUPPORTED_PLANS)
def test_unsupported_plans_are_refused_with_their_reason(model, reason):
    edit_json(model / "plans.json", UNSUPPORTED_PLANS[reason])

    with pytest.raises(ModelError) as caught:
        read_model_spec(model)

    assert reason in caught.value.reason


UNSUPPORTED_DATASETS = {
    "several classes": {"labels": {"background": 0, "liver": 1, "spleen": 2}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": 2}},
    "background only": {"labels": {"background": 0}},
    "several channels": {"channel_names": {"0": "T1", "1": "T2"}},
    "no channel": {"channel_names": {}},
    "labels that are no table": {"labels": ["background", "liver"]},
}


@pytest.mark.parametrize("change", UNSUPPORTED_DATASETS.values(), ids=UNSUPPORTED_DATASETS)
def test_models_of_other_tasks_are_refused(model, change):
    edit_json(model / "dataset.json", lambda meta: meta.update(change))

    with pytest.raises(ModelError, match=r"dataset\.json"):
        read_model_spec(model)


class Trap:
    """Creates a file when unpickled, which reading a model must never let happen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))]
)
def test_a_checkpoint_that_would_run_code_is_refused_unrun(model, tmp_path, save):
    content = torch.load(model / CHECKPOINT, weights_only=True)
    save({**content, "extra": Trap(tmp_path / "sprung")}, model / CHECKPOINT)

    with pytest.raises(ModelError, match="checkpoint_final"):
        read_model_spec(model)

    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(60)])
def test_damaged_checkpoints_are_named(model, content):
    (model / CHECKPOINT).write_bytes(content)

    with pytest.raises(ModelError, match="checkpoint_final"):
        read_model_spec(model)


def test_every_fold_is_checked_before_use(tmp_path):
    plans = make_plans()
    networks = {name: make_network(plans, seed=0) for name in ("0", "1")}
    folder = write_model(tmp_path / "model", plans, networks)
    whole = (folder / "fold_1" / "checkpoint_final.pth").read_bytes()
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelError, match="fold_1"):
        load_all(folder)


def test_a_checkpoint_without_configuration_is_refused(model):
    edit_checkpoint(model / CHECKPOINT, lambda content: content["init_args"].clear())

    with pytest.raises(ModelError, match="configuration"):
        read_model_spec(model)


def drop_a_weight(content):
    content["network_weights"].pop(next(reversed(content["network_weights"])))


def reshape_a_weight(content):
    name, weight = next(iter(content["network_weights"].items()))
    content["network_weights"][name] = weight[:2]


@pytest.mark.parametrize("change", [drop_a_weight, reshape_a_weight])
def test_weights_that_do_not_fit_the_plans_are_refused(model, change):
    edit_checkpoint(model / CHECKPOINT, change)

    with pytest.raises(ModelError, match="do not fit the plans"):
        load_all(model)


def architecture(**changes):
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(changes)


@pytest.mark.parametrize(
    "name", ["no.such.module.UNet", "torch.nn.NoSuchThing", "os.system", "torch.nn.Identity"]
)
def test_unknown_architectures_are_refused(model, name):
    edit_json(model / "plans.json", architecture(network_class_name=name))

    with pytest.raises(ModelError, match=f"unknown architecture '{name}'"):
        load_all(model)


def test_an_architecture_with_wrong_arguments_is_refused(model):
    edit_json(model / "plans.json", architecture(arch_kwargs={"n_stages": 2}))

    with pytest.raises(ModelError, match="the architecture cannot be built"):
        load_all(model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_torchs_wrappers_are_taken_off(model, prefix):
    before = {key: value.clone() for key, value in load_all(model)[0].state_dict().items()}

    def wrap(content):
        weights = content["network_weights"]
        content["network_weights"] = {f"{prefix}{k}": v for k, v in weights.items()}

    edit_checkpoint(model / CHECKPOINT, wrap)

    after = load_all(model)[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_of_another_network_are_one_short_line(model):
    plans = make_plans(residual=True)
    other = make_network(plans, seed=1).state_dict()
    edit_checkpoint(model / CHECKPOINT, lambda content: content.update(network_weights=other))

    with pytest.raises(ModelError) as caught:
        load_all(model)

    assert len(str(caught.value)) < 300
    assert "the weights do not fit the plans" in str(caught.value)


def test_weights_that_are_not_finite_are_refused_at_load(model):
    def spoil(content):
        next(iter(content["network_weights"].values())).view(-1)[0] = float("nan")

    edit_checkpoint(model / CHECKPOINT, spoil)

    with pytest.raises(ModelError, match="not finite"):
        load_all(model)


@pytest.mark.parametrize(
    "change",
    [
        {"arch_kwargs": {}},
        {"_kw_requires_import": 3, "arch_kwargs": {"norm_op": 7}},
        {"network_class_name": ["a", "list"]},
    ],
)
def test_plans_of_no_network_are_refused_when_it_is_made(model, change):
    def changed(plans):
        plans["configurations"]["3d_fullres"]["architecture"].update(change)

    edit_json(model / "plans.json", changed)

    with pytest.raises(ModelError):
        CanonicalSegmenter(read_model_spec(model), EngineOptions(device="cpu"))


def test_an_unsupported_normalisation_is_refused_before_any_image(model):
    def change(plans):
        plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["RGBTo01Normalization"]

    edit_json(model / "plans.json", change)

    with pytest.raises(ModelError, match="unsupported normalisation 'RGBTo01Normalization'"):
        read_model_spec(model)


def test_a_listed_checkpoint_is_read_once_hashed_and_loaded_from_what_was_read(
    tmp_path, model, monkeypatch
):
    freeze_model(model, tmp_path / "w", name="m", sequences=("*",), card=ModelCard("", "", "", ""))
    hashed = []
    folder = tmp_path / "w" / "m"
    small = {folder / name: sha256_file(folder / name) for name in ("dataset.json", "plans.json")}
    monkeypatch.setattr(manifest, "sha256_file", lambda path: hashed.append(path) or small[path])

    [location] = locate_models(tmp_path / "w", hash_weights=False)

    assert set(hashed) == set(small)
    spec = read_model_spec(folder, folds=location.folds, sha256=location.sha256)
    load_checkpoint(spec, "0")
    content = bytearray((folder / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(ModelError, match="its content was altered: SHA-256"):
        load_checkpoint(spec, "0")


@pytest.mark.parametrize("name", [CHECKPOINT, "plans.json"])
def test_a_file_swapped_after_it_was_checked_is_refused(model, name):
    [location] = locate_models(model)
    with (model / name).open("ab") as file:
        file.write(b" ")

    def load():
        spec = read_model_spec(model, folds=location.folds, sha256=location.sha256)
        return load_checkpoint(spec, "0")

    with pytest.raises(ModelError, match="its content was altered: SHA-256"):
        load()
