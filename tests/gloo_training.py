"""Training one fold in several processes on a CPU, where nnU-Net would take several GPUs."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

from sslmedsam2.nnunet.trainer import LiverTrainer
from sslmedsam2.nnunet.training import FoldTraining, run_rank


def run_rank_on_a_cpu(rank: int, training: FoldTraining, rendezvous: Path, notes: Path) -> None:
    """Do what a process with a GPU does; note the patches it drew and the weights it ended with."""
    torch.set_num_threads(1)
    _keep_nnunet_from_gpus()
    drawn: list[torch.Tensor] = []
    step, end = LiverTrainer.train_step, LiverTrainer.on_train_end

    def noting(self: LiverTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        drawn.append(batch["data"].clone())
        return step(self, batch)

    def note(self: LiverTrainer) -> None:
        end(self)
        weights = {name: value.clone() for name, value in self.network.module.state_dict().items()}
        torch.save({"drawn": drawn, "weights": weights}, notes / f"{rank}.pt")

    LiverTrainer.train_step, LiverTrainer.on_train_end = noting, note  # type: ignore[method-assign]
    run_rank(rank, training, rendezvous, logging.WARNING)


def _keep_nnunet_from_gpus() -> None:
    """Undo the two places where nnU-Net takes it for granted that several processes have GPUs."""
    construct, wrap = nnUNetTrainer.nnUNetTrainer.__init__, nnUNetTrainer.DDP

    # The signature is looked at.
    @functools.wraps(construct)
    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.device, self.grad_scaler = torch.device("cpu"), None

    nnUNetTrainer.nnUNetTrainer.__init__ = on_cpu
    nnUNetTrainer.DDP = lambda network, **_: wrap(network)
