"""nnU-Net's trainer with randomised contrast and settings for a short schedule.

Importing this module imports torch and nnU-Net; import it inside functions.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import duration
from sslmedsam2.imaging.atomic import atomic_path, write_text_atomic
from sslmedsam2.nnunet.augmentation import (
    labelled_transforms,
    unlabelled_transforms,
    validation_transforms,
)
from sslmedsam2.nnunet.cpu import (
    USUAL_ARITHMETIC,
    CpuArithmetic,
    arithmetic_of_fold,
    arrange_for_cpu,
)
from sslmedsam2.nnunet.curves import Curves
from sslmedsam2.nnunet.dataset import UnlabelledCase, read_sampling, read_unlabelled
from sslmedsam2.nnunet.deterministic import CrossEntropy, arrange_deterministically
from sslmedsam2.nnunet.muon import Muon
from sslmedsam2.nnunet.online import (
    OnlineSettings,
    UnlabelledPatches,
    deep_unlabelled_loss,
    fewshot_weights,
    mixed_target,
)
from sslmedsam2.nnunet.organs import add_organs, organ_loss, without_organs

logger = logging.getLogger(__name__)


_MAX_GRADIENT_NORM = 12.0
_SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""On a GPU, where an epoch of a large network takes no longer than writing its checkpoint."""
_BEST_CHECKPOINT = "checkpoint_best.pth"
_AVERAGE_DECAY = 0.999
_N_OUTPUTS = 2
"""Background and liver; what follows in the outputs are organs."""
_TRAINING_WEIGHTS = "training_weights"
"""Entry of a checkpoint with the weights of the optimiser. nnU-Net's own entry holds their average,
which inference uses."""
_CURVES = {
    "loss/train": "train_losses",
    "loss/validation": "val_losses",
    "pseudo_dice": "mean_fg_dice",
    "learning_rate": "lrs",
}
"""Names in TensorBoard, and in nnU-Net's log."""


@dataclass(frozen=True)
class TrainingSettings:
    """Schedule and augmentation of one training.

    Attributes
    ----------
    epochs, iterations_per_epoch
        Length; a checkpoint is written after every epoch, on a GPU every ten minutes.
    learning_rate
        Initial value, decayed to zero by nnU-Net's polynomial schedule.
    contrast_probability
        Share of patches with a random contrast.
    mirror_probability
        Share of mirrored patches; small, because canonical orientation distinguishes left from
        right, and only scans with a wrong header need it.
    organ_weight
        Initial weight of the loss of other organs relative to the liver's. It falls to 0 over the
        training, because at full weight the liver of the labelled sequence was learned less well.
    measure_cpu
        Measure at the start which number format and memory layout are fastest on this CPU, and
        whether torch.compile helps: up to two minutes. Not done if ``deterministic``, because two
        measurements may choose differently. A GPU uses nnU-Net's settings.
    deterministic
        Give the same weights each time: slower, and on a GPU patches are loaded in this process.
    seed
        Seeds the initial weights and every epoch. On a CPU, a run that was interrupted and resumed
        ends with the same weights as one that was not. On a GPU, unless ``deterministic``, nnU-Net
        loads patches in worker processes, whose order is not seeded.
    online
        How to learn from the unlabelled cases of the data set; None if it has none.
    """

    epochs: int = 30
    iterations_per_epoch: int = 50
    validation_iterations: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    contrast_probability: float = 0.7
    mirror_probability: float = 0.1
    organ_weight: float = 0.5
    measure_cpu: bool = False
    deterministic: bool = False
    seed: int = 20260
    online: OnlineSettings | None = None


class PatchLoader(nnUNetDataLoader):
    """Places patches in the same way whether or not the data have an ignore label.

    With an ignore label, nnU-Net centres each patch on a labelled voxel and lets it exceed the
    image, because such data may be labelled in a few places only. Here all but a rim is labelled,
    and a patch is nearly as large as the image, so half of it would be empty. ``seed`` must differ
    between trainings.
    """

    def __init__(self, *args: Any, seed: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_ignore = False
        self.seed = seed
        self.unlabelled: PatchLoader | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Seed torch differently in each loader process.

        nnU-Net calls this once in every process that it forks, and seeds only numpy there: all
        processes would draw the same contrasts.
        """
        super().set_thread_id(thread_id)
        (seed,) = np.random.SeedSequence((*self.seed, thread_id)).generate_state(1)
        torch.manual_seed(int(seed))

    def generate_train_batch(self) -> dict[str, Any]:
        """Return nnU-Net's batch, and that of the ``unlabelled`` loader if there is one."""
        batch = super().generate_train_batch()
        if self.unlabelled is not None:
            more = self.unlabelled.generate_train_batch()
            batch |= {f"unlabelled_{name}": value for name, value in more.items()}
        return batch


@contextmanager
def _parent_uses(name: str, replacement: Any) -> Iterator[None]:
    """Replace a name in the module of nnU-Net's trainer while the context is open."""
    module: Any = sys.modules[nnUNetTrainer.__module__]
    usual = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, usual)


def _save_json(content: Any, path: str, indent: int = 4, sort_keys: bool = True) -> None:
    write_text_atomic(Path(path), json.dumps(content, indent=indent, sort_keys=sort_keys))


def _of_liver(outputs: list[Tensor]) -> list[Tensor]:
    return [output[:, :_N_OUTPUTS] for output in outputs]


class _StoppedError(Exception):
    """The training was stopped before its last epoch."""


class LiverTrainer(nnUNetTrainer):
    """Train nnU-Net on canonical liver volumes.

    Differences from the parent: Muon instead of SGD (it needs few iterations, see ``muon.py``),
    other organs as additional targets (``organs.py``), a network rearranged for a CPU, randomised
    contrast, no test-time mirroring,
    atomic checkpoints after every epoch (on a GPU every ten minutes), and no checkpoint of the best
    epoch, which is not used.
    """

    settings: TrainingSettings
    network: Any
    curves: Curves | None = None
    arithmetic: CpuArithmetic | None = None
    stop: StopRequest = StopRequest()
    unlabelled: Mapping[str, UnlabelledCase]
    _teacher: nn.Module
    """The average of the weights of the last steps; inference uses it."""
    _call_teacher: Any
    _organ_loss: DeepSupervisionWrapper
    _steps: int = 0
    _saved_at: float = 0.0

    def use(self, settings: TrainingSettings) -> None:
        """Apply ``settings``; call before ``initialize``."""
        self.settings = settings
        folder = Path(self.preprocessed_dataset_folder_base)
        self.unlabelled = read_unlabelled(folder) if settings.online is not None else {}
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.validation_iterations
        self.initial_lr = settings.learning_rate
        self.weight_decay = settings.weight_decay
        self._saved_at = time.monotonic()

    # nnU-Net looks at the names of the parameters, so they are written out.
    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build nnU-Net's network, with layers for other organs."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        return add_organs(network)

    def initialize(self) -> None:
        """Build network and optimiser as nnU-Net does, from seeded weights."""
        self._reseed()
        super().initialize()
        if self.settings.deterministic:
            arrange_deterministically(self.network)
        if self.device.type == "cpu":
            self._arrange_for_cpu()
        self._teacher = copy.deepcopy(self._bare_network).requires_grad_(False).eval()
        self._call_teacher = torch.compile(self._teacher) if self._is_compiled else self._teacher

    @property
    def _is_compiled(self) -> bool:
        return hasattr(getattr(self.network, "module", self.network), "_orig_mod")

    @property
    def _bare_network(self) -> torch.nn.Module:
        """The network inside the wrappers of distributed training and torch.compile."""
        network: Any = getattr(self.network, "module", self.network)
        return getattr(network, "_orig_mod", network)

    def start_from(self, weights: dict[str, Any]) -> None:
        """Set the initial weights; raises RuntimeError if they do not fit the network."""
        self._bare_network.load_state_dict(weights)
        self._teacher.load_state_dict(weights)

    def _arrange_for_cpu(self) -> None:
        arrange_for_cpu(self.network)
        shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
        self.arithmetic = USUAL_ARITHMETIC
        if self.settings.measure_cpu and not self.settings.deterministic:
            folder = Path(self.output_folder)
            folder.mkdir(parents=True, exist_ok=True)
            self.arithmetic = arithmetic_of_fold(folder, self.network, patch=torch.randn(shape))
        # torch's stubs do not know this documented form.
        self.network.to(memory_format=self.arithmetic.layout)
        if self.arithmetic.compiled:
            self.network = torch.compile(self.network)

    def _reseed(self) -> None:
        # Processes that share a training must draw different patches.
        seed = self.settings.seed + 1000 * self.current_epoch + 7 * self.local_rank
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def print_to_log_file(
        self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True
    ) -> None:
        """Send nnU-Net's console lines to the log."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)
        if also_print_to_console:
            logger.debug(" ".join(str(part) for part in args))

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return Muon with nnU-Net's polynomial decay."""
        optimizer = Muon(self.network, lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Load patches as nnU-Net does, each case as often as the data set says."""
        seed = (self.settings.seed, self.local_rank, self.current_epoch)
        sampling = read_sampling(Path(self.preprocessed_dataset_folder_base))
        # nnU-Net makes the loader of the training first, then that of the validation.
        made: list[PatchLoader] = []

        def make_loader(data: Any, *args: Any, **kwargs: Any) -> PatchLoader:
            loader = PatchLoader(data, *args, seed=seed, **kwargs)
            if not made and sampling is not None:
                loader.sampling_probabilities = sampling.probabilities(data.identifiers)
            if not made and (keys := self._unlabelled_keys()):
                kwargs["transforms"] = self._unlabelled_transforms
                unlabelled = self.dataset_class(self.preprocessed_dataset_folder, keys)
                loader.unlabelled = PatchLoader(unlabelled, *args, seed=seed, **kwargs)
            made.append(loader)
            return loader

        with _parent_uses("nnUNetDataLoader", make_loader):
            return super().get_dataloaders()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does; unlabelled cases are in neither part."""
        training, validation = super().do_split()
        return (
            [key for key in training if key not in self.unlabelled],
            [key for key in validation if key not in self.unlabelled],
        )

    def _unlabelled_keys(self) -> list[str]:
        """Return the fold's unlabelled cases; there may be none."""
        return [key for key in super().do_split()[0] if key in self.unlabelled]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[tuple[float, float], bool, tuple[int, ...], tuple[int, ...]]:
        """Return modest rotations, a larger patch to hold them, and no test-time mirroring."""
        angle = 15 / 360 * 2 * np.pi
        patch = np.array(self.configuration_manager.patch_size)
        # Thin along z: only the in-plane axes need a margin for rotation and scaling.
        initial = tuple(int(n) for n in np.ceil(patch * np.array([1.1, 1.25, 1.25])))
        self.inference_allowed_mirroring_axes = None
        return (-angle, angle), False, initial, ()

    def get_training_transforms(
        self,
        patch_size: Any,
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: Any,
        *_args: object,
        **_kwargs: object,
    ) -> BasicTransform:
        """Return the augmentation of labelled patches; that of unlabelled ones is kept."""
        self._unlabelled_transforms = unlabelled_transforms(
            patch_size,
            rotation=rotation_for_DA,
            contrast_probability=self.settings.contrast_probability,
            mirror_probability=self.settings.mirror_probability,
        )
        return labelled_transforms(
            patch_size,
            rotation=rotation_for_DA,
            contrast_probability=self.settings.contrast_probability,
            mirror_probability=self.settings.mirror_probability,
            scales=deep_supervision_scales,
        )

    def get_validation_transforms(
        self, deep_supervision_scales: Any, *_args: object, **_kwargs: object
    ) -> BasicTransform:
        """Return the label clean-up and the targets of deep supervision."""
        return validation_transforms(deep_supervision_scales)

    def _build_loss(self) -> Any:
        loss = super()._build_loss()
        if self.settings.deterministic:
            loss.loss.ce = CrossEntropy(self.label_manager.ignore_label)
        self._organ_loss = DeepSupervisionWrapper(organ_loss, loss.weight_factors)
        return loss

    def on_train_start(self) -> None:
        """Start the curves at the current epoch, and write nnU-Net's JSON files atomically."""
        with _parent_uses("save_json", _save_json):
            super().on_train_start()
        if self.local_rank == 0:
            self.curves = Curves(Path(self.output_folder), first_epoch=self.current_epoch)

    def on_train_end(self) -> None:
        """Finish checkpoint and curves."""
        super().on_train_end()
        if self.curves is not None:
            self.curves.close()

    def on_train_epoch_start(self) -> None:
        """Reseed by epoch number, then proceed as nnU-Net does."""
        self._reseed()
        self._steps = self.current_epoch * self.num_iterations_per_epoch
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one optimisation step and update the average of the weights."""
        result = self._step(batch)
        self._update_average()
        return result

    def _step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Step on a labelled batch and, if the schedule says so, on unlabelled patches."""
        self.optimizer.zero_grad(set_to_none=True)
        targets = [part.to(self.device, non_blocking=True) for part in batch["target"]]
        outputs = self._outputs(self.network, batch["data"])
        loss = self.loss(_of_liver(outputs), [target[:, :1] for target in targets])
        organs = self._organ_loss(
            [output[:, _N_OUTPUTS:] for output in outputs], [target[:, 1] for target in targets]
        )
        weight = self.settings.organ_weight * (1 - self._progress)
        self._backward(loss + weight * organs)
        settings = self.settings.online
        if settings and settings.is_on(self._progress) and "unlabelled_data" in batch:
            patches = UnlabelledPatches.of_batch(batch, self.device)
            self._backward(self._unlabelled_loss(patches, settings))
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT_NORM)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}

    def _outputs(self, network: Any, data: Tensor) -> list[Tensor]:
        """Predict ``(batch, 1, z, y, x)`` in the device's number format; returns float32."""
        bfloat16 = self.arithmetic is not None and self.arithmetic.bfloat16
        dtype, enabled = (
            (torch.float16, True) if self.device.type == "cuda" else (torch.bfloat16, bfloat16)
        )
        data = data.to(self.device, non_blocking=True)
        if self.arithmetic is not None:
            data = data.contiguous(memory_format=self.arithmetic.layout)
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            outputs = network(data)
        return [output.float() for output in outputs]

    def _backward(self, loss: Tensor) -> None:
        scaled = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
        scaled.backward()

    @property
    def _progress(self) -> float:
        """Share of the training's steps that are done, 0 to 1."""
        return self._steps / (self.num_epochs * self.num_iterations_per_epoch)

    def _unlabelled_loss(self, patches: UnlabelledPatches, settings: OnlineSettings) -> Tensor:
        """Return the student's loss on the strong view against the target of the weak one."""
        weight = fewshot_weights(
            patches.keys,
            self.unlabelled,
            share=settings.fewshot_share(self._progress),
            network_dice=self._dice_after(settings.warm_up),
        ).to(self.device)
        with torch.no_grad():
            teacher = self._outputs(self._call_teacher, patches.weak)[0].softmax(dim=1)[:, 1:2]
            target = mixed_target(teacher, patches.fewshot, weight)
        return deep_unlabelled_loss(
            _of_liver(self._outputs(self.network, patches.strong)),
            target,
            sure_above=settings.sure_above,
            patch_weight=settings.weight * weight.clamp_min(settings.teacher_share(self._progress)),
        )

    def _dice_after(self, warm_up: float) -> float | None:
        """Return the mean Dice on held-out reference masks of the last epochs of the warm-up.

        None for fold ``all``, whose validation cases are training cases.
        """
        if self.fold == "all":
            return None
        epochs = round(warm_up * self.num_epochs)
        values = self.logger.get_value("mean_fg_dice", step=None)[:epochs][-5:]
        return float(np.mean(values)) if values else None

    def _update_average(self) -> None:
        """Update the moving average: over few steps at first, later over about 1,000."""
        self._steps += 1
        decay = min(_AVERAGE_DECAY, (1 + self._steps) / (10 + self._steps))
        weights = [weight.detach() for weight in self._bare_network.parameters()]
        # All at once: on a GPU hundreds of small kernels take longer than their work.
        get_ema_multi_avg_fn(decay)(list(self._teacher.parameters()), weights, None)

    def run_training(self) -> None:
        """Train to the end, or until ``stop`` is true at the end of an epoch."""
        try:
            super().run_training()
        except _StoppedError:
            logger.info("fold %s: stopped after epoch %d", self.fold, self.current_epoch)
            for loader in (self.dataloader_train, self.dataloader_val):
                if hasattr(loader, "_finish"):
                    loader._finish()
            if self.curves is not None:
                self.curves.close()

    def on_epoch_end(self) -> None:
        """Write a checkpoint if it is due, log the epoch, and stop if that was requested."""
        epoch, stop = self.current_epoch, self._is_stop_asked()
        due = stop or time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_CHECKPOINTS
        self.save_every = 1 if due or self.device.type == "cpu" else self.num_epochs + 1
        super().on_epoch_end()
        if self.curves is not None:
            self._report(epoch)
        if stop and self.current_epoch < self.num_epochs:
            raise _StoppedError

    def _is_stop_asked(self) -> bool:
        """Return whether to stop; the result is the same in all processes of a training."""
        asked = bool(self.stop)
        if not self.is_ddp:
            return asked
        votes = torch.tensor(int(asked), device=self.device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def _report(self, epoch: int) -> None:
        assert self.curves is not None
        newest = {name: self.logger.get_value(key, step=-1) for name, key in _CURVES.items()}
        self.curves.add(epoch, newest)
        start, end = (
            self.logger.get_value(f"epoch_{when}_timestamps", step=-1) for when in ("start", "end")
        )
        left = (self.num_epochs - epoch - 1) * (end - start)
        logger.info(
            "fold %s, epoch %d of %d: loss %.3f, validation Dice of patches %.3f%s",
            self.fold,
            epoch + 1,
            self.num_epochs,
            newest["loss/train"],
            newest["pseudo_dice"],
            f", about {duration(left)} left" if left else "",
        )

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint atomically, so that a kill leaves the last complete one.

        ``network_weights``, which nnU-Net reads, are the average of the weights of the last steps:
        it predicts better than the newest weights, above all while the learning rate is high.
        """
        if Path(filename).name == _BEST_CHECKPOINT:
            return
        self._saved_at = time.monotonic()
        if self.local_rank != 0:
            return
        newest = self._bare_network.state_dict()
        # The entries of nnU-Net's trainer, and one more.
        content = {
            "network_weights": self._averaged(newest),
            _TRAINING_WEIGHTS: newest,
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        with atomic_path(Path(filename)) as path:
            try:
                torch.save(content, path)
            except RuntimeError as error:
                # torch raises this if a file cannot be written.
                raise OSError(" ".join(str(error).split())[:200]) from error

    def _averaged(self, newest: dict[str, Any]) -> dict[str, Any]:
        """Return the averaged weights of nnU-Net's network, including those of shared weights."""
        network = self._bare_network
        average = {
            id(weight): mean.detach()
            for weight, mean in zip(network.parameters(), self._teacher.parameters(), strict=True)
        }
        own = network.state_dict(keep_vars=True)
        averaged = {name: average.get(id(own[name]), value) for name, value in newest.items()}
        return without_organs(averaged)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load newest weights, average and optimiser from a checkpoint of this class."""
        super().load_checkpoint(filename_or_checkpoint)
        network = self._bare_network
        self._teacher.load_state_dict(network.state_dict())
        content = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
        # One of an earlier version holds no average.
        network.load_state_dict(content.get(_TRAINING_WEIGHTS, content["network_weights"]))
