"""The one base class: everything the methods share, and nothing any single one of them needs."""

from abc import abstractmethod
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.encoders import Encoder, check_size, evaluation_mode, load_strictly
from ssl_zoo.optim import parameter_groups
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, Canvases, Crops, Key, View


class Batch(NamedTuple):
    """A batch as a method sees it: the loader's tensors, and during training their views."""

    images: Tensor | Crops | Canvases   # [B, 3, H, W] uint8; while training from files, what the workers made
    labels: Tensor           # [B], -1 where unknown; only evaluation and supervised methods read them
    index: Tensor            # type: ignore[assignment]  # [B] place of each image in its data set
    views: list[View]
    key: Key                 # what every draw of this batch depends on


class Method(pl.LightningModule):
    """A pretraining method: an encoder, the views it learns from, and a loss on them.

    A subclass writes `training_loss`; one with averaged weights also writes `after_step` and `evaluated`.

    Args:
        encoder: images -> features; what pretraining is for.
        augment: draws the views of each training batch, on the device.
        optimizer: builds the optimiser; its lr is the lr used, its weight decay spares biases and norms.
        schedule: multiplies the lr by progress through training.
    """

    def __init__(self, encoder: Encoder, augment: Augmentation, optimizer: OptimizerCallable, schedule: WarmupCosine):
        super().__init__()
        # From a recipe, all of it is plain values and makes a checkpoint self-contained. Built in Python, the four
        # parts are objects, which a checkpoint must not pickle.
        self.save_hyperparameters(ignore=["encoder", "augment", "optimizer", "schedule"])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()
        self.encoder = encoder
        self.augment = augment
        self.optimizer = optimizer
        self.schedule = schedule

    @abstractmethod
    def training_loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise for this batch."""

    def after_step(self) -> None:
        """Runs once after each optimiser step, however many batches it accumulated."""

    @property
    def evaluated(self) -> Encoder:
        """The encoder that evaluation sees and export writes; a method with a teacher may answer with the teacher's."""
        return self.encoder

    @property
    def progress(self) -> float:
        """Share of the optimiser steps done, 0 to 1."""
        return self.trainer.global_step / self.trainer.estimated_stepping_batches

    def encode(self, images: Tensor) -> Tensor:
        """Features [B, dim] float32 of `images`, in evaluation mode and without autocast: all that evaluation sees."""
        with evaluation_mode(self.evaluated):
            return self.evaluated(images).float()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        images, labels, index = batch
        if not self.trainer.training:
            return Batch(images, labels, index, [], Key(0, 0, 0, 0))
        batch_number = self.trainer.fit_loop.batch_idx + 1   # Lightning counts a batch when it has arrived
        key = Key(distributed.run_seed(), self.current_epoch, batch_number, self.global_rank)
        return Batch(images, labels, index, self.augment(images, key), key)

    def on_fit_start(self) -> None:
        """Refuse views of a size that the encoder does not take, before an epoch is spent."""
        for size in {spec.size for spec in self.augment.views}:
            check_size(self.encoder, size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.index))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        assert isinstance(batch.images, Tensor)   # only training batches are crops
        return self.encode(batch.images)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self))
        # Counting the steps loads the data, and here that would come before Lightning has restored a checkpoint's
        # place in them: a run resumed in mid-epoch would start the epoch's images anew. So count at the first step.
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule(step / self.trainer.estimated_stepping_batches if step else 0.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        load_strictly(self, checkpoint["state_dict"], "the checkpoint")
