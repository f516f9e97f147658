"""The one base class: everything that all methods share, and nothing that only one of them needs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from ssl_zoo import batches, distributed, logs, start
from ssl_zoo.course import Course
from ssl_zoo.encoders import Encoder, evaluation_mode
from ssl_zoo.optim import Group, Schedules, built, parameter_groups
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, Canvases, Crops, Key, View
from ssl_zoo.weights import require_same_tensors


class Batch(NamedTuple):
    """A batch as a method sees it: what the loader brought, and during training the views of its images."""

    images: Tensor | Crops | Canvases   # [B, 3, H, W] uint8; while training from files, what the workers made
    labels: Tensor           # [B], -1 where unknown; only evaluation and supervised methods read them
    index: Tensor            # type: ignore[assignment]  # [B] place of each image in its data set; hides tuple.index
    views: list[View]
    key: Key                 # decides the batch's random draws; key.epoch stays correct after a resume
    progress: Tensor = torch.tensor(0.0)   # [] share of training done, on the host: a schedule of it compiles once


class Method(pl.LightningModule):
    """A pretraining method: an encoder, the views it learns from, and a loss on them.

    A subclass implements `training_loss`. Override `after_step` and `evaluated` for averaged weights, and `groups` for
    parts with a learning rate of their own.

    Args:
        encoder: images -> features; what pretraining is for.
        augment: draws the views of each training batch, on the device.
        optimizer: builds the optimiser; its lr is the lr used, its weight decay spares biases and norms.
        schedule: the factor on the lr, as a function of the progress through training.
    """

    def __init__(self, encoder: Encoder, augment: Augmentation, optimizer: OptimizerCallable, schedule: WarmupCosine):
        super().__init__()
        start.require_hooks(type(self), Method)
        # a recipe's plain values make a checkpoint self-contained; the objects of a Python call must not be pickled
        self.save_hyperparameters(ignore=["encoder", "augment", "optimizer", "schedule"])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()
        self.encoder, self.augment = encoder, augment
        self.optimizer, self.schedule, self.course, self.kept = optimizer, schedule, Course(), list[Any]()

    @abstractmethod
    def training_loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise for this batch."""

    def after_step(self) -> None:
        """Runs once after each optimiser step, however many batches it accumulated."""

    @property
    def evaluated(self) -> Encoder:
        """The encoder that evaluation sees and export writes; a method with a teacher may answer with the teacher's."""
        return self.encoder

    def groups(self) -> Sequence[Group]:
        """Parameters with a learning rate or weight decay of their own; all others have the recipe's."""
        return ()

    @property
    def progress(self) -> float:
        """Share of the optimiser steps done, 0 to 1; 0 without a trainer. A loss reads `batch.progress` instead."""
        return self.course.progress(self)

    def encode(self, images: Tensor) -> Tensor:
        """Features [B, dim] float32 of `images`, in evaluation mode, without autocast: what evaluation calls."""
        with evaluation_mode(self.evaluated):
            return self.evaluated(images).float()

    log = logs.kept_while_compiled(pl.LightningModule.log)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        images, labels, index, key = batches.read(batch, self, dataloader_idx)
        views, progress = (self.augment(images, key), self.progress) if self.trainer.training else ([], 0.0)
        return Batch(images, labels, index, views, key, torch.tensor(progress))

    def on_fit_start(self) -> None:
        start.require_ready(self, self.trainer)
        distributed.keep_own_buffers(self.trainer.model)

    def on_train_start(self) -> None:
        self.course.resume(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = start.loss_of(self, batch)
        self.log("loss", loss, batch_size=len(batch.index))   # a mean over ranks, or prog_bar, makes every step wait
        return loss

    def on_after_backward(self) -> None:
        start.require_gradients(self, self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.encode(cast(Tensor, batch.images))   # only training batches are crops

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def configure_optimizers(self) -> Any:
        optimizer = built(self.optimizer, parameter_groups(self, groups := self.groups()))
        scheduler = Schedules(optimizer, self.schedule, groups, lambda step: self.course.on_schedule(self, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["course"] = self.course.save(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.course.load(self, checkpoint)
        require_same_tensors(self, checkpoint["state_dict"], "the checkpoint")
