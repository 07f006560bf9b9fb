from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from sslmedsam2.nnunet.plans import (
    CONFIGURATION,
    TRAINED_LABELS,
    CompactPreset,
    compact_plans,
    dataset_json,
)


def _manager(preset):
    plans = compact_plans(
        preset,
        dataset_name="Dataset001_Liver",
        median_shape_zyx=(36, 256, 256),
        median_spacing_zyx_mm=(7.5, 1.25, 1.25),
        intensity={"mean": 0.0, "std": 1.0},
    )
    return PlansManager(plans)


def test_nnunet_reads_what_the_preset_says():
    preset = CompactPreset()
    configuration = _manager(preset).get_configuration(CONFIGURATION)

    assert tuple(configuration.spacing) == preset.spacing_zyx_mm
    assert tuple(configuration.patch_size) == preset.patch_zyx
    assert configuration.batch_size == preset.batch_size
    assert list(configuration.median_image_size_in_voxels) == [45, 107, 107]
    assert tuple(map(tuple, configuration.pool_op_kernel_sizes)) == preset.strides_zyx
    assert configuration.normalization_schemes == ["ZScoreNormalization"]
    assert callable(configuration.resampling_fn_data)


def test_label_manager_finds_one_foreground_label():
    meta = dataset_json(n_cases=3, labels=TRAINED_LABELS)
    labels = _manager(CompactPreset()).get_label_manager(meta)

    assert labels.foreground_labels == [1]
    assert labels.num_segmentation_heads == 2
    assert not labels.has_ignore_label
