"""The Python interface: input, output, and the same masks as ``predict`` writes."""

import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from tiny_models import bright_tissue_model
from tiny_scans import CANONICAL_AFFINE_RAS, abdomen, write_scan

from sslmedsam2 import LiverSegmenter, Segmentation
from sslmedsam2.errors import InputError, ModelError, UsageError
from sslmedsam2.fewshot.strategy import FewShotSettings
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.reading import read_grid, read_mask, read_stored, read_volume
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.retrain.state import RetrainOptions

REPOSITORY = Path(__file__).parents[1]
# Stored left-handed, slices downwards.
MIRRORED_AFFINE_RAS = CANONICAL_AFFINE_RAS @ np.diag([-1, 1, -1, 1])


@pytest.fixture(scope="module")
def segmenter(bright_model):
    return LiverSegmenter(bright_model, device="cpu")


def predicted_mask(path, output, **options):
    report = predict(PredictOptions(path, output, previews=False, device="cpu", **options))
    [result] = report.series
    return output / result.output_path, result


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("scan.nii.gz", {}),
        ("scan.nii", {"affine_ras": MIRRORED_AFFINE_RAS, "dtype": np.float64}),
        ("scan.nii.gz", {"trailing_axis": True}),
    ],
)
def test_the_saved_mask_is_the_file_that_predict_writes(
    segmenter, bright_model, tmp_path, name, how
):
    path = write_scan(tmp_path / name, **how)
    liver = segmenter.segment(path)
    liver.save(tmp_path / "api.nii.gz")

    written, result = predicted_mask(path, tmp_path / "run", model_dir=bright_model)
    assert (tmp_path / "api.nii.gz").read_bytes() == written.read_bytes()
    assert round(liver.volume_ml, 1) == result.liver_volume_ml
    assert liver.warnings == result.warnings
    assert liver.verdict == result.verdict
    assert round(liver.mean_confidence, 4) == result.mean_foreground_confidence


@pytest.mark.slow
def test_the_shipped_weights_find_a_phantoms_liver_as_predict_does(tmp_path):
    case = REPOSITORY / "test_inputs" / "images" / "Vendor-C" / "0004-C"
    path = min(case.glob("*.nii.gz"), key=lambda file: file.stat().st_size)
    liver = LiverSegmenter(device="cpu").segment(path)

    written, _ = predicted_mask(path, tmp_path)
    assert np.array_equal(liver.mask_zyx, read_mask(written).array_zyx)
    reference = read_mask(
        REPOSITORY / "test_inputs" / "references" / case.name / f"mask_{path.name}"
    ).array_zyx
    overlap = 2 * (liver.mask_zyx & reference).sum() / (liver.mask_zyx.sum() + reference.sum())
    assert overlap > 0.85


def test_a_path_an_itk_image_and_a_volume_give_the_same(segmenter, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", affine_ras=MIRRORED_AFFINE_RAS)
    given = [str(path), sitk.ReadImage(path), read_volume(path)]

    first, *others = [segmenter.segment(image) for image in given]

    assert first.mask_zyx.any()
    for other in others:
        assert np.array_equal(other.mask_zyx, first.mask_zyx)
        assert np.array_equal(other.probability_zyx, first.probability_zyx)
        assert same_grid(other.geometry, first.geometry)


def test_itk_images_come_back_on_the_grid_they_came_on(segmenter, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", dtype=np.float32)
    image = sitk.JoinSeries([sitk.ReadImage(path)])
    assert image.GetDimension() == 4

    liver = segmenter.segment(image)

    for found in (liver.mask_image(), liver.probability_image()):
        assert found.GetSize() == image.GetSize()
        assert found.GetSpacing()[:3] == pytest.approx(image.GetSpacing()[:3])
        assert found.GetOrigin()[:3] == pytest.approx(image.GetOrigin()[:3])
    liver.save(tmp_path / "mask.mha")
    assert same_grid(read_grid(tmp_path / "mask.mha").geometry, read_grid(path).geometry)
    assert np.array_equal(read_mask(tmp_path / "mask.mha").array_zyx, liver.mask_zyx)


def test_the_probability_says_what_the_mask_was_made_of(segmenter, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", affine_ras=MIRRORED_AFFINE_RAS)

    liver = segmenter.segment(path)

    probability = liver.probability_zyx
    assert probability.shape == liver.mask_zyx.shape
    assert probability.dtype == np.float32
    # The model's margin has no lower end than -1.
    assert probability.min() == pytest.approx(1 / (1 + np.e), abs=1e-3)
    assert 0.8 < probability.max() <= 1
    # The clean-up drops a spot and fills holes, and adds nothing outside.
    assert (probability[liver.mask_zyx == 1] > 0.5).mean() > 0.99
    assert (probability > 0.5).sum() > liver.mask_zyx.sum()
    liver.save_probability(tmp_path / "probability.nii.gz")
    assert np.array_equal(read_stored(tmp_path / "probability.nii.gz").array_zyx, probability)


def test_no_liver_is_an_empty_mask_with_a_warning(tmp_path):
    model = bright_tissue_model(tmp_path / "blind", threshold=50.0)
    path = write_scan(tmp_path / "scan.nii.gz")

    liver = LiverSegmenter(model, device="cpu").segment(path)

    assert not liver.mask_zyx.any()
    assert liver.volume_ml == 0
    assert liver.mean_confidence is None
    [warning] = liver.warnings
    assert warning.startswith("no_liver: ")


def test_many_come_in_order_and_each_with_its_own(segmenter, tmp_path):
    paths = [write_scan(tmp_path / f"{n}.nii.gz", abdomen(seed=n)[0]) for n in range(3)]

    pairs = list(segmenter.segment_many(paths))

    assert [path for path, _ in pairs] == paths
    for path, liver in pairs:
        assert liver.source.path == path
        assert np.array_equal(liver.mask_zyx, segmenter.segment(path).mask_zyx)


def test_only_one_image_is_drawn_ahead(segmenter, tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz")
    drawn = []

    def endless():
        while True:
            drawn.append(path)
            yield path

    livers = segmenter.segment_many(endless())
    next(livers)
    assert len(drawn) == 2
    next(livers)
    livers.close()
    assert len(drawn) == 3


def test_a_bad_image_is_reported_and_the_others_go_on(segmenter, tmp_path):
    good = write_scan(tmp_path / "good.nii.gz")
    bad = tmp_path / "missing.nii.gz"
    errors = []

    pairs = list(
        segmenter.segment_many(
            [good, bad, good], on_error=lambda image, error: errors.append((image, error.kind))
        )
    )

    assert [path for path, _ in pairs] == [good, good]
    assert errors == [(bad, "missing_file")]


def test_a_bad_image_is_raised_in_its_turn(segmenter, tmp_path):
    good = write_scan(tmp_path / "good.nii.gz")
    livers = segmenter.segment_many([good, tmp_path / "missing.nii.gz", good])
    assert isinstance(next(livers)[1], Segmentation)
    with pytest.raises(InputError, match=r"missing.nii.gz: the file does not exist"):
        next(livers)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (sitk.Image([8, 8], sitk.sitkFloat32), "two_dimensional"),
        (sitk.Image([8, 8, 1], sitk.sitkFloat32), "single_slice"),
        (sitk.Image([8, 8, 8], sitk.sitkFloat32), "constant"),
        (sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), "multi_channel"),
        (sitk.Image([8, 8, 8], sitk.sitkComplexFloat32), "complex"),
    ],
)
def test_unusable_itk_images_are_refused_by_kind(segmenter, image, kind):
    with pytest.raises(InputError, match="image in memory") as refusal:
        segmenter.segment(image)
    assert refusal.value.kind == kind


def test_what_is_no_image_is_a_type_error(segmenter):
    with pytest.raises(TypeError, match="not ndarray"):
        segmenter.segment(np.zeros((8, 8, 8)))


def test_what_is_no_model_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        LiverSegmenter(tmp_path / "nowhere")


def test_a_volume_with_another_source_is_not_changed(segmenter, tmp_path):
    """The caller's array is left as it was."""
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    before = volume.array_zyx.copy()
    segmenter.segment(replace(volume, repairs=("noted: by the caller",)))
    assert np.array_equal(volume.array_zyx, before)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, sslmedsam2\n"
        "assert 'LiverSegmenter' in dir(sslmedsam2)\n"
        "print(sorted({'torch', 'numpy', 'SimpleITK', 'nibabel'} & set(sys.modules)))\n"
        "from sslmedsam2 import LiverSegmenter\n"
        "try:\n    sslmedsam2.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "module 'sslmedsam2' has no attribute 'nothing'"]


@pytest.mark.parametrize(
    "word", [{"mode": "turbo"}, {"device": "gpu"}, {"sequence": "T3"}], ids=str
)
def test_a_word_that_does_not_exist_is_refused(word):
    with pytest.raises(UsageError, match="there is no such"):
        LiverSegmenter(**word)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (PredictOptions, {"mode": "turbo"}),
        (PredictOptions, {"on_failure": "maybe"}),
        (PredictOptions, {"layout": "own"}),
        (PredictOptions, {"mask_format": "png"}),
        (FewShotSettings, {"strategy": "guess"}),
        (RetrainOptions, {"method": "none"}),
        (RetrainOptions, {"final": "all"}),
    ],
)
def test_options_of_functions_refuse_words_that_do_not_exist(kind, word):
    needed = [one.name for one in fields(kind) if one.default is one.default_factory is MISSING]
    folders = dict.fromkeys(needed, Path("x"))
    kind(**folders)
    [name] = word
    with pytest.raises(UsageError, match=f"there is no such {name}. Use '"):
        kind(**folders, **word)
