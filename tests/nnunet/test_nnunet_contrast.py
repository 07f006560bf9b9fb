import pytest
import torch

from sslmedsam2.nnunet import contrast
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, IGNORE, LIVER, UNSURE_LIVER

SPLEEN = AUXILIARY_OFFSET + 4
BOX = {
    LIVER: (slice(None), slice(4, 12), slice(22, 38), slice(16, 32)),
    SPLEEN: (slice(None), slice(4, 12), slice(22, 38), slice(38, 50)),
}
SEEDS = range(12)


@pytest.fixture
def segmentation():
    labels = torch.zeros(1, 16, 64, 72, dtype=torch.int16)
    for label, box in BOX.items():
        labels[box] = label
    return labels


@pytest.fixture
def image(segmentation):
    """A noisy abdomen in air; the spleen is brighter than the liver, as in T2."""
    generator = torch.Generator().manual_seed(5)
    values = torch.zeros(segmentation.shape)
    values[:, :, 10:54, 10:62] = 0.35
    values[segmentation == LIVER] = 0.3
    values[segmentation == SPLEEN] = 0.7
    noise = torch.randn(values.shape, generator=generator)
    return (values + 0.01 * noise).clamp_min(0)


@pytest.fixture
def unit(image):
    return contrast.to_unit_range(image)


REPAINTERS = {
    "curve": lambda unit, _: contrast.random_curve(unit),
    "labels": contrast.random_label_contrast,
    "bright_liver": contrast.bright_liver,
    "bright_fat": lambda unit, labels: contrast.bright_fat(unit, unit, labels),
    "convolutions": lambda unit, _: contrast.random_convolutions(unit),
}
TRANSFORMS = [
    contrast.RandomContrastTransform(),
    contrast.IntensityJitterTransform(),
    contrast.BiasFieldTransform(),
    contrast.SliceThicknessTransform(),
]


def _sample(image, segmentation):
    return {"image": image.clone(), "segmentation": segmentation.clone()}


@pytest.mark.parametrize("name", REPAINTERS)
def test_seed_decides_the_contrast(unit, segmentation, name):
    def painted(seed):
        torch.manual_seed(seed)
        return REPAINTERS[name](unit, segmentation)

    assert painted(1).shape == unit.shape
    assert torch.equal(painted(1), painted(1))
    assert not torch.equal(painted(1), painted(2))


@pytest.mark.parametrize("name", REPAINTERS)
def test_input_is_left_as_it_was(unit, segmentation, name):
    before, labels_before = unit.clone(), segmentation.clone()
    for seed in range(5):
        torch.manual_seed(seed)
        REPAINTERS[name](unit, segmentation)
    assert torch.equal(unit, before)
    assert torch.equal(segmentation, labels_before)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("kind", ["plain", "constant", "no_liver", "outside"])
def test_any_patch_stays_finite_and_keeps_its_shape(image, segmentation, transform, kind):
    if kind == "constant":
        image = torch.full_like(image, 3.0)
    elif kind == "no_liver":
        segmentation = torch.zeros_like(segmentation)
    elif kind == "outside":
        segmentation = torch.full_like(segmentation, -1)
    for seed in range(6):
        torch.manual_seed(seed)
        result = transform(**_sample(image, segmentation))
        assert result["image"].shape == image.shape
        assert result["image"].isfinite().all()
        assert torch.equal(result["segmentation"], segmentation)


def test_repainted_patch_is_standardised(image, segmentation):
    for seed in SEEDS:
        torch.manual_seed(seed)
        result = contrast.RandomContrastTransform()(**_sample(40 + 7 * image, segmentation))
        assert result["image"].mean().abs() < 1e-3
        assert result["image"].std() == pytest.approx(1, abs=1e-3)


def test_unit_range_forgets_scale_and_offset(image):
    unit = contrast.to_unit_range(image)

    assert unit.min() == 0
    assert unit.max() == 1
    assert torch.allclose(unit, contrast.to_unit_range(900 * image - 40), atol=1e-4)


def test_only_labelled_organs_and_their_borders_are_repainted(unit, segmentation):
    near = torch.nn.functional.max_pool3d(
        (segmentation > 0).float(), (1, 3, 3), stride=1, padding=(0, 1, 1)
    )
    changed_liver = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        painted = contrast.random_label_contrast(unit, segmentation)
        assert torch.equal(painted[near == 0], unit[near == 0])
        changed_liver += not torch.allclose(painted[BOX[LIVER]], unit[BOX[LIVER]])
    assert 0.6 * len(SEEDS) < changed_liver < len(SEEDS)


def test_some_organs_are_turned_to_their_negative(unit, segmentation):
    inner = (slice(None), slice(5, 11), slice(24, 36), slice(18, 30))
    correlations = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        painted = contrast.random_label_contrast(unit, segmentation)[inner]
        pair = torch.stack([painted.flatten(), unit[inner].flatten()])
        correlations.append(torch.corrcoef(pair)[0, 1].item())

    assert 0 < sum(value < -0.99 for value in correlations) < len(SEEDS) / 2
    assert sum(value > 0.99 for value in correlations) > len(SEEDS) / 2


def test_bright_liver_outshines_a_brighter_organ(unit, segmentation):
    assert unit[BOX[SPLEEN]].mean() > 2 * unit[BOX[LIVER]].mean()
    for seed in SEEDS:
        torch.manual_seed(seed)
        painted = contrast.bright_liver(unit, segmentation)
        liver = painted[BOX[LIVER]].mean()
        assert liver > painted[BOX[SPLEEN]].mean()
        assert liver > painted[segmentation == 0].mean()


def test_air_stays_dark_most_of_the_time():
    air = torch.zeros(1, 1, 1, 1)
    dark = 0
    for seed in range(200):
        torch.manual_seed(seed)
        dark += contrast.random_curve(air).item() < 0.02
    assert 140 < dark < 200


def test_fat_is_painted_under_the_skin_only(unit, segmentation):
    brightest = 0.0
    for seed in SEEDS:
        torch.manual_seed(seed)
        painted = contrast.bright_fat(unit, unit, segmentation)
        outside = painted[:, :, :, :9], unit[:, :, :, :9]
        core = painted[:, :, 24:36, 33:37], unit[:, :, 24:36, 33:37]
        for here, before in (outside, core):
            assert torch.equal(here, before)
        ring = painted[:, :, 11, 20:50].mean().item()
        assert ring > unit[:, :, 11, 20:50].mean()
        brightest = max(brightest, ring)
    assert brightest > unit[BOX[SPLEEN]].mean(), "fat is the brightest tissue at times"


def test_convolutions_keep_the_patch_recognisable(unit):
    for seed in range(10):
        torch.manual_seed(seed)
        mixed = contrast.random_convolutions(unit)
        assert mixed.mean() == pytest.approx(unit.mean().item(), abs=0.05)
        assert mixed.std() <= 1.05 * unit.std()


def test_jitter_changes_gain_and_offset_alike_everywhere(image, segmentation):
    torch.manual_seed(3)
    jittered = contrast.IntensityJitterTransform()(**_sample(image, segmentation))["image"]

    pair = torch.stack([jittered.flatten(), image.flatten()])
    assert torch.corrcoef(pair)[0, 1] == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(jittered, image)


def test_bias_field_is_smooth_and_keeps_the_darkest_voxel(segmentation):
    image = torch.ones(1, 16, 64, 72)
    image[0, 0, 0, 0] = -2.0
    torch.manual_seed(0)
    biased = contrast.BiasFieldTransform()(**_sample(image, segmentation))["image"]

    assert biased[0, 0, 0, 0] == -2
    factors = (biased[0, 1:] + 2) / 3
    assert factors.std() > 0.02
    assert factors.diff(dim=-1).abs().max() < 0.2


def test_thick_slices_blur_along_z_only(segmentation):
    along_z = torch.zeros(1, 16, 64, 72)
    along_z[:, ::2] = 1.0
    along_x = torch.zeros(1, 16, 64, 72)
    along_x[..., ::2] = 1.0
    torch.manual_seed(0)
    transform = contrast.SliceThicknessTransform()

    assert transform(**_sample(along_z, segmentation))["image"].std() < 0.8 * along_z.std()
    assert torch.allclose(transform(**_sample(along_x, segmentation))["image"], along_x, atol=1e-6)


def test_field_of_view_blanks_image_and_labels_alike():
    image = torch.ones(1, 20, 20, 20)
    labels = torch.ones(1, 20, 20, 20, dtype=torch.int16)
    kept_counts = set()
    axes_cut = set()
    for seed in range(60):
        torch.manual_seed(seed)
        result = contrast.FieldOfViewTransform()(**_sample(image, labels))
        assert torch.equal(result["segmentation"] == 1, result["image"] == 1)
        places = (result["image"][0] == 1).nonzero()
        lengths = (places.amax(dim=0) - places.amin(dim=0) + 1).tolist()
        assert len(places) == lengths[0] * lengths[1] * lengths[2], "what is kept is one slab"
        assert sorted(lengths)[1:] == [20, 20]
        kept_counts.add(min(lengths))
        axes_cut.add(lengths.index(min(lengths)))
    assert min(kept_counts) >= 7
    assert max(kept_counts) < 20
    assert axes_cut == {0, 1, 2}
    assert image.min() == 1, "the sample that was given is not written to"


def test_magnitude_noise_hides_texture_and_keeps_the_z_score(image):
    noisy = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        noisy.append(contrast.MagnitudeNoiseTransform()(**_sample(image, torch.zeros(1)))["image"])
    for result in noisy:
        assert result.shape == image.shape
        assert abs(result.mean()) < 1e-3
        assert abs(result.std() - 1) < 1e-3
    likeness = [torch.corrcoef(torch.stack([image.flatten(), r.flatten()]))[0, 1] for r in noisy]
    assert min(likeness) < 0.8 < max(likeness)


def test_auxiliary_labels_and_padding_become_background(image):
    labels = torch.tensor([-1, 0, LIVER, AUXILIARY_OFFSET + 2, SPLEEN]).reshape(1, 1, 1, 5)
    result = contrast.DropAuxiliaryLabelsTransform()(**_sample(image, labels))

    assert result["segmentation"].flatten().tolist() == [0, 0, LIVER, 0, 0]
    assert torch.equal(result["image"], image)


def test_unsure_liver_is_repainted_as_liver_and_then_ignored():
    labels = torch.zeros(1, 8, 32, 32)
    labels[:, 2:6, 8:24, 8:16] = LIVER
    labels[:, 2:6, 8:24, 16:24] = UNSURE_LIVER
    image = torch.where(labels > 0, 0.4, 0.2)
    torch.manual_seed(0)

    painted = contrast.bright_liver(image, labels)
    assert torch.allclose(painted[labels == LIVER].mean(), painted[labels == UNSURE_LIVER].mean())
    trained = contrast.DropAuxiliaryLabelsTransform()(**_sample(image, labels))["segmentation"]
    assert torch.equal(trained == IGNORE, labels == UNSURE_LIVER)
    assert torch.equal(trained == LIVER, labels == LIVER)


def test_bright_fluid_spares_labelled_organs_and_outshines_the_rest():
    labels = torch.zeros(1, 12, 40, 40)
    labels[:, 4:8, 10:20, 10:20] = LIVER
    image = torch.full((1, 12, 40, 40), 0.3)
    torch.manual_seed(3)

    painted = contrast.bright_fluid(image, image, labels)
    assert painted.max() > 1.0
    core = torch.nn.functional.max_pool3d(1 - (labels == LIVER).float(), 3, 1, 1) == 0
    assert torch.equal(painted[core], image[core])
