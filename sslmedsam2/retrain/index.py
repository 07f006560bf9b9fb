"""Stage 1: find, check and hash the images, and refuse what cannot work.

What would fail after hours is refused here: too few patients, masks that do not fit their images,
too little disk space.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.names import identity_key
from sslmedsam2.contract.studies import find_queries
from sslmedsam2.errors import InputError, NoInputError, UsageError
from sslmedsam2.execution.units import Executor, ThisProcess
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import check_labelled
from sslmedsam2.imaging.orientation import reorientation_of
from sslmedsam2.imaging.reading import read_grid
from sslmedsam2.imaging.records import sha256_file, write_record
from sslmedsam2.inference.device import choose_device
from sslmedsam2.nnunet.plans import Grid, PlannedNetwork, plan_network, planned_network
from sslmedsam2.nnunet.training import check_gpus
from sslmedsam2.pseudo_label.supports import find_sam2
from sslmedsam2.retrain.estimate import log_estimate
from sslmedsam2.retrain.state import (
    RetrainOptions,
    WorkDir,
    as_stored,
    changed_options,
    options_of,
    read_state,
)
from sslmedsam2.weights.checkpoint import read_checkpoint
from sslmedsam2.weights.freeze import check_freezable
from sslmedsam2.weights.manifest import ANY_SEQUENCE

logger = logging.getLogger(__name__)

_PREPROCESSED_BYTES: Final = 6
"""Per voxel of nnU-Net's data set: float32 image and int16 labels, before compression."""
_MAP_BYTES: Final = 2
"""Per voxel of a mask with its float32 maps, gzipped; measured 0.3 to 1.5."""


@dataclass(frozen=True)
class Index:
    """The images that take part, one line for each that cannot, and hashes of start and SAM2.

    ``labelled_sha256`` holds the hashes of each labelled image's files ``image``, ``mask`` and
    ``organs``. Paths are absolute.
    """

    labelled: tuple[ImageFile, ...]
    queries: tuple[ImageFile, ...]
    problems: tuple[str, ...]
    start_sha256: str | None
    labelled_sha256: tuple[Mapping[str, str], ...] = ()
    sam2_sha256: str | None = None


def index_data(options: RetrainOptions, *, executor: Executor | None = None) -> Index:
    """Find, check and record the images; an index of the same images is kept.

    Raises
    ------
    NoInputError
        No labelled or no unlabelled image.
    InputError
        A labelled image or its mask cannot be used.
    UsageError
        Too few patients for the folds, too little disk space, a missing device, a mean of weights
        without a common start, or a work directory of other data or options.
    ModelError
        The checkpoint to start from cannot be read, or the model could not be frozen later.
    OutputError
        The work directory or the folder for the weights cannot be written.
    """
    work = WorkDir(options.work_dir)
    _keep_apart(options)
    _check_options(work, options)
    check_final(options)
    if options.start is not None:
        read_checkpoint(options.start)
    if options.weights_dir is not None:
        check_freezable(options.weights_dir, name=options.name, sequences=served_by(options))
    labelled = _labelled(options)
    index = _index(options, labelled)
    if not work.index.is_file():
        _check_cases(labelled, options)
        check_labelled(index.labelled)
        executor = executor or ThisProcess()
        device = executor.call(choose_device, options.device)
        grids = _check_machine(index, options, executor, device=device)
        log_estimate(grids, len(index.labelled), options=options, device=device, executor=executor)
    elif not _is_same(read_index(work), index):
        raise UsageError(
            work.path,
            reason="it was made from other images or masks, or with another --start or --sam2",
            remedy="Choose another work directory, or remove that one to begin anew",
        )
    write_record(work.options, as_stored(options))
    write_record(work.index, index)
    return index


def read_index(work: WorkDir) -> Index:
    """Read what :func:`index_data` wrote; raises UsageError."""
    return read_state(work.index, Index)


def check_final(options: RetrainOptions) -> None:
    """Raise :class:`UsageError` for a mean of weights without a common start."""
    if options.final == "average" and options.start is None:
        raise UsageError(
            "--final average",
            reason="without a common start the folds' weights go far apart, and have no mean",
            remedy="Give all folds a --start, or freeze the ensemble",
        )


def served_by(options: RetrainOptions) -> tuple[str, ...]:
    """Return the sequences that the frozen model will serve."""
    return options.sequences or (ANY_SEQUENCE,)


def _keep_apart(options: RetrainOptions) -> None:
    work = options.work_dir.resolve()
    for folder in (options.labelled_dir, options.unlabelled_dir):
        root = folder.resolve()
        if root in (work, *work.parents):
            raise UsageError(
                options.work_dir,
                reason=f"the work directory lies inside {folder}, whose images it would join",
                remedy="Choose a work directory beside the data",
            )


def _check_options(work: WorkDir, options: RetrainOptions) -> None:
    if not work.options.is_file():
        return
    changed = changed_options(options_of(work), options)
    if changed:
        raise UsageError(
            work.path,
            reason=f"it was begun with other options ({', '.join(changed)})",
            remedy="Repeat those of options.json there, or choose another work directory",
        )


def _labelled(options: RetrainOptions) -> list[ImageFile]:
    found = find_labelled_series(
        options.labelled_dir, label=options.label, sequence_map=options.sequence_map
    )
    chosen = [s for s in found if options.sequences is None or s.sequence in options.sequences]
    for series in found:
        if series not in chosen:
            logger.info("%s: %s is not asked for", series.path, series.sequence or "no sequence")
    if not chosen:
        raise NoInputError(
            options.labelled_dir,
            reason="there is no labelled image" + (" of these sequences" if found else ""),
            remedy="Give case folders that hold <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    return chosen


def _check_cases(labelled: Sequence[ImageFile], options: RetrainOptions) -> None:
    n_cases = len({identity_key(series.case) for series in labelled})
    if options.folds < 2:
        raise UsageError(
            f"--folds {options.folds}",
            reason="a volume can only be re-predicted by a fold that left it out",
            remedy="Give 2 or more",
        )
    if n_cases < options.folds:
        raise UsageError(
            options.labelled_dir,
            reason=f"{n_cases} labelled patient(s) are too few for {options.folds} folds",
            remedy=f"Give --folds {n_cases}, or label more patients: each fold is scored on one"
            if n_cases >= 2
            else "Label a second patient and give --folds 2, or use train --folds 0",
        )


def _index(options: RetrainOptions, labelled: Sequence[ImageFile]) -> Index:
    found = find_queries(
        options.unlabelled_dir,
        labelled=labelled,
        sequences=options.sequences,
        sequence_map=options.sequence_map,
    )
    reference_images = {sha256_file(series.path) for series in labelled}
    taken = {(series.case, series.sequence_or_volume): series.path for series in labelled}
    queries, problems = [], [str(problem) for problem in found.problems]
    for series in found.series:
        try:
            sha256 = sha256_file(series.path)
            read_grid(series.path)
        except (InputError, OSError) as error:
            problems.append(str(error))
            continue
        if sha256 in reference_images:
            logger.info("%s: is labelled, and so is left out of the unlabelled", series.path)
            continue
        query = replace(series, sha256=sha256)
        other = taken.setdefault((query.case, query.sequence_or_volume), query.path)
        if other != query.path:
            problems.append(f"{query.path}: is left out, since {other} has the same case and name")
            continue
        queries.append(query)
    for problem in problems:
        logger.warning(problem)
    if not queries:
        raise NoInputError(
            options.unlabelled_dir,
            reason="there is no unlabelled image" + (f" ({problems[0]})" if problems else ""),
            remedy="Give case folders with GED4.nii.gz and the like; without any, use train",
        )
    start_sha256 = None if options.start is None else sha256_file(options.start)
    hashes = [{role: sha256_file(path) for role, path in image.files.items()} for image in labelled]
    return Index(
        tuple(map(_resolved, labelled)),
        tuple(map(_resolved, queries)),
        tuple(problems),
        start_sha256,
        tuple(hashes),
        sha256_file(find_sam2(options.sam2)),
    )


def _is_same(before: Index, now: Index) -> bool:
    # Work directories of earlier versions do not know the hash of SAM2.
    sam2_sha256 = before.sam2_sha256 and now.sam2_sha256
    return _identity(before) == _identity(replace(now, sam2_sha256=sam2_sha256))


def _identity(index: Index) -> list[Any]:
    """Return what decides the results: the content of the files, not their paths."""
    labelled = [
        (image.case, image.sequence, image.label, sorted(hashes.items()))
        for image, hashes in zip(index.labelled, index.labelled_sha256, strict=True)
    ]
    queries = [(query.case, query.vendor, query.sequence, query.sha256) for query in index.queries]
    return [labelled, queries, index.start_sha256, index.sam2_sha256]


def _resolved(image: ImageFile) -> ImageFile:
    paths = {"path": image.path, "mask": image.mask, "organs": image.organs}
    return replace(image, **{role: path and path.resolve() for role, path in paths.items()})  # type: ignore[arg-type]


def _check_machine(
    index: Index, options: RetrainOptions, executor: Executor, *, device: str
) -> list[Grid]:
    """Check GPUs and disk, and return the images' grids, those of the labelled first."""
    grids = [_grid(image.path) for image in (*index.labelled, *index.queries)]
    planned = planned_network(plan_network(options.preset, grids, intensity={}))
    executor.call(check_gpus, options.gpus, device=device, batch_size=planned.batch_size)
    _check_disk(grids, planned, options)
    return grids


def _check_disk(grids: Sequence[Grid], planned: PlannedNetwork, options: RetrainOptions) -> None:
    voxel_mm3 = float(np.prod(planned.spacing_zyx_mm))
    labels = sum(float(np.prod(grid.shape_zyx)) for grid in grids)
    preprocessed = sum(
        float(np.prod(grid.shape_zyx)) * float(np.prod(grid.spacing_zyx_mm)) / voxel_mm3
        for grid in grids
    )
    a_round = preprocessed * _PREPROCESSED_BYTES + labels * _MAP_BYTES
    needed = labels * _MAP_BYTES + a_round * options.rule.most_rounds
    options.work_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.work_dir).free
    logger.info("estimate: up to %s in the work directory (%s free)", _size(needed), _size(free))
    if needed > free:
        raise UsageError(
            options.work_dir,
            reason=f"up to {_size(needed)} are needed and {_size(free)} are free",
            remedy="Free disk space, use another disk, or ask for fewer rounds",
        )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _grid(path: Path) -> Grid:
    """Read shape and spacing of an image in the canonical orientation."""
    geometry = read_grid(path).geometry
    z, y, x = reorientation_of(geometry).axes
    shape, spacing = geometry.shape_zyx, geometry.spacing_zyx_mm
    return Grid((shape[z], shape[y], shape[x]), (spacing[z], spacing[y], spacing[x]))
