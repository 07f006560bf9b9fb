"""Python interface: load a model once, then segment paths, SimpleITK images and volumes.

For the same model and options the masks are identical to those of the command ``predict``: both
use the same functions of :mod:`sslmedsam2.inference.masks`. If the network finds no liver, the mask
here is empty and a warning says so; ``predict`` may write a marked guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar, Union

import SimpleITK as sitk  # noqa: N813

from sslmedsam2.contract.names import SEQUENCES
from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.execution.units import read_ahead
from sslmedsam2.imaging.orientation import to_native
from sslmedsam2.imaging.reading import read_volume, volume_from_itk
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskVolume, MaskZYX, Source, Volume
from sslmedsam2.imaging.writing import to_itk, write_map, write_mask
from sslmedsam2.inference.confidence import DiceEstimate
from sslmedsam2.inference.device import Device
from sslmedsam2.inference.masks import ReadyVolume, judge, make_ready
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions, Mode
from sslmedsam2.weights.locate import locate_models, model_for_sequence
from sslmedsam2.weights.manifest import ANY_SEQUENCE

Image = Union[str, "PathLike[str]", sitk.Image, Volume]
"""What can be segmented: a path, a SimpleITK image, or a volume as read."""

_Given = TypeVar("_Given", bound=Image)


@dataclass(frozen=True)
class Segmentation:
    """A liver on the grid of its image, in the image's own orientation.

    Attributes
    ----------
    mask_zyx
        uint8 ``[z, y, x]``: 1 is liver, one component without holes; all 0 if none was found.
    probability_zyx
        float32 ``[z, y, x]``, 0 to 1, before clean-up: above 0.5 where the network says liver,
        so also in components that the mask leaves out.
    volume_ml
        Of the mask.
    mean_confidence
        Mean probability over the voxels that the network calls liver; None if there are none.
    estimate
        The Dice that a comparison with a reference mask would probably give (``estimate.dice``),
        and ``estimate.interval``, which should hold it in 90 % of scans; None without a mask or if
        the model has no calibration.
    verdict
        ``"check"``: look at the mask before you use its volume; else ``"ok"``. The same rule as in
        ``run_report.json``.
    warnings
        What was repaired in the image, and what to look at before trusting the mask; each as
        ``name: sentence``.
    geometry, source
        Of the image; see :mod:`sslmedsam2.imaging.volume`.
    """

    mask_zyx: MaskZYX
    probability_zyx: ArrayZYX
    volume_ml: float
    mean_confidence: float | None
    estimate: DiceEstimate | None
    verdict: Literal["ok", "check"]
    warnings: tuple[str, ...]
    geometry: Geometry
    source: Source

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as ``predict`` writes it: on exactly the image's grid, then read back.

        The name's end chooses the format: .nii.gz, .nii, .mha or .nrrd.

        Raises
        ------
        OutputError
            The file cannot be written, or reads back differently.
        """
        write_mask(self.mask_zyx, like=self._grid(), path=Path(path))

    def save_probability(self, path: str | PathLike[str]) -> None:
        """Write the probability as float32; raises OutputError."""
        write_map(self.probability_zyx, like=self._grid(), path=Path(path))

    def mask_image(self) -> sitk.Image:
        """Return the mask as a SimpleITK image of the input's size, spacing and position."""
        return to_itk(self.mask_zyx, geometry=self.geometry, source=self.source)

    def probability_image(self) -> sitk.Image:
        """Return the probability as a SimpleITK image."""
        return to_itk(self.probability_zyx, geometry=self.geometry, source=self.source)

    def _grid(self) -> MaskVolume:
        return MaskVolume(self.mask_zyx, self.geometry, self.source)


class LiverSegmenter:
    """One model, loaded once. Not for use by several threads at once.

    Examples
    --------
    One image, given as a path, a SimpleITK image or a volume:

    >>> segmenter = LiverSegmenter()
    >>> liver = segmenter.segment("GED4.nii.gz")
    >>> print(liver.volume_ml, liver.warnings)
    >>> liver.save("GED4_liver.nii.gz")

    Many, with the next being read while the network works on this one:

    >>> for path, liver in segmenter.segment_many(sorted(Path("scans").glob("*.nii.gz"))):
    ...     print(path, liver.volume_ml)
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        sequence: str | None = None,
        device: Device = "auto",
        mode: Mode = "exact",
        mirror: bool = True,
        second_view: bool = True,
    ) -> None:
        """Find the model, compare its files with its manifest and load it.

        Parameters
        ----------
        model
            A model folder, or a folder with a ``manifest.json``; None for ``/opt/ml/model`` if
            something is there, else the weights that ship with the project.
        sequence
            ``"GED4"``, ``"T1"``, ``"T2"`` or ``"DWI_800"``, where a manifest lists a model of
            its own for that sequence; None for the model that serves all.
        device
            ``"cuda"``, ``"cpu"``, or ``"auto"`` for a GPU if there is one.
        mode
            ``"exact"`` gives nnU-Net's own result, ``"fast"`` nearly the same in less time.
        mirror
            Average over mirrored views, if the model was trained for it.
        second_view
            Segment a scan of which the network is unsure also with inverted contrast, and average.

        Raises
        ------
        ModelError
            There is no such model, or it is incomplete, altered or of an unsupported kind.
        UsageError
            A GPU was asked for and none is there; or ``device``, ``mode`` or ``sequence`` is none
            of the words above.
        """
        options = EngineOptions(device, mode, mirror, sure_from=None if second_view else 0.0)
        if sequence is not None and sequence not in SEQUENCES:
            raise UsageError(
                f"sequence {sequence!r}",
                reason="there is no such sequence",
                remedy=f"Use one of {', '.join(SEQUENCES)}, or None",
            )
        models = locate_models(None if model is None else Path(model), hash_weights=False)
        chosen = model_for_sequence(models, sequence or ANY_SEQUENCE)
        spec = read_model_spec(chosen.path, folds=chosen.folds, sha256=chosen.sha256)
        self._engine = CanonicalSegmenter(spec, options)

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda"`` or a numbered GPU such as ``"cuda:1"``."""
        return self._engine.device

    @property
    def backend(self) -> str:
        """What computes, and in which arithmetic, such as ``"openvino fp32"``."""
        return self._engine.backend

    def segment(self, image: Image) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image
            A path (NIfTI, MetaImage, NRRD or another format of ``info``), a SimpleITK image of
            three axes (further ones of length 1 are accepted), or a
            :class:`~sslmedsam2.imaging.volume.Volume`.

        Raises
        ------
        InputError
            The image cannot be read or used; ``kind`` says why.
        ModelError
            The model asks for a normalisation that is not supported.
        TypeError
            It is no image.
        """
        return self._segmented(_ready(image))

    def segment_many(
        self,
        images: Iterable[_Given],
        *,
        on_error: Callable[[_Given, SslMedSam2Error], None] | None = None,
    ) -> Iterator[tuple[_Given, Segmentation]]:
        """Yield each image with its segmentation, in order.

        The next image is read while the network works on this one. Only these two are in memory, so
        ``images`` may be a generator without end.

        Parameters
        ----------
        images
            As for :meth:`segment`; drawn from one at a time.
        on_error
            Called with an image that cannot be segmented and its error; the others go on. None to
            raise the error in that image's turn, which ends the iteration. A TypeError is raised
            in any case.
        """
        for image, ready in read_ahead(images, _ready_or_error):
            try:
                if isinstance(ready, SslMedSam2Error):
                    raise ready
                found = self._segmented(ready)
            except SslMedSam2Error as error:
                if on_error is None:
                    raise
                on_error(image, error)
            else:
                yield image, found

    def _segmented(self, ready: ReadyVolume) -> Segmentation:
        found = self._engine.segment(ready.canonical, with_probability=True)
        assert found.probability_zyx is not None
        judged = judge(found.mask_zyx, ready, found)
        return Segmentation(
            mask_zyx=judged.mask_zyx,
            probability_zyx=to_native(found.probability_zyx, ready.canonical.reorientation),
            volume_ml=judged.volume_ml,
            mean_confidence=found.mean_confidence,
            estimate=judged.estimate,
            verdict="check" if judged.is_to_check else "ok",
            warnings=judged.warnings,
            geometry=ready.volume.geometry,
            source=ready.volume.source,
        )


def _ready(image: Image) -> ReadyVolume:
    if isinstance(image, Volume):
        return make_ready(image)
    if isinstance(image, sitk.Image):
        return make_ready(volume_from_itk(image))
    if isinstance(image, (str, PathLike)):
        return make_ready(read_volume(Path(image)))
    raise TypeError(
        f"an image is a path, a SimpleITK.Image or a sslmedsam2 Volume, not {type(image).__name__}"
    )


def _ready_or_error(image: _Given) -> tuple[_Given, ReadyVolume | SslMedSam2Error]:
    """Read an image; its error travels along, to be raised in its turn."""
    try:
        return image, _ready(image)
    except SslMedSam2Error as error:
        return image, error
