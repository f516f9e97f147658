import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.assignment import sinkhorn
from ssl_zoo.heads import Prototypes, mlp
from ssl_zoo.losses import check_temperature, unit
from ssl_zoo.memory import Queue
from ssl_zoo.method import Batch, Method


class SwAV(Method):
    """Each view predicts the prototype codes of the global ones. Caron et al., NeurIPS 2020, arXiv:2006.09882.

    Args:
        projector: widths of the projector after the encoder.
        prototypes: how many, at least 2; some ten for each expected class.
        temperature: of the predicted softmax over prototypes.
        epsilon: the smaller, the sharper the codes; 0.03 where the loss stays at log(prototypes).
        sinkhorn_iterations: rounds of balancing the codes.
        queue: projections of each global view that join a small batch in the balancing; 0 for none.
        queue_start: epoch from which the queue is filled; it is used once it is full.
        freeze_steps: optimiser steps during which the prototypes stay as they are.
        encoder: images -> features; what pretraining is for.
        augment: draws the views.
        optimizer: builds the optimiser; its lr is the lr used, its weight decay spares biases and norms.
        schedule: multiplies the lr by progress through training.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), prototypes: int = 3000, temperature: float = 0.1,
                 epsilon: float = 0.05, sinkhorn_iterations: int = 3, queue: int = 0, queue_start: int = 15,
                 freeze_steps: int = 313, **kwargs: Any):
        super().__init__(**kwargs)
        self.globals = self.augment.global_views("SwAV")
        self.projector = mlp(self.encoder.dim, *projector)
        self.prototypes = Prototypes(projector[-1], prototypes)
        self.queues = nn.ModuleList(Queue(queue, projector[-1]) for _ in self.globals if queue)
        self.temperature, self.epsilon, self.iterations = check_temperature(temperature), epsilon, sinkhorn_iterations
        self.queue_start, self.freeze_steps, self.full = queue_start, freeze_steps, False

    def training_loss(self, batch: Batch) -> Tensor:
        self.prototypes.normalize()
        z = self.project(batch)                                                                    # V x [B, D]
        scores = [self.prototypes(z_v) for z_v in z]                                               # V x [B, K]
        codes = [self.codes(i, z[g], scores[g], batch.index) for i, g in enumerate(self.globals)]  # G x [B, K]
        nearest = torch.cat([scores[g].argmax(1) for g in self.globals])           # the codes, being balanced, use all
        used = scores[0].new_zeros(scores[0].shape[1]).index_fill(0, nearest, 1)                   # [K]
        self.log("prototypes/used", used.mean(), batch_size=len(batch.index))
        return torch.stack([F.cross_entropy(scores[v] / self.temperature, code)                    # eq. (2)
                            for g, code in zip(self.globals, codes, strict=True)
                            for v in range(len(scores)) if v != g]).mean()

    def project(self, batch: Batch) -> list[Tensor]:
        """Views of one size pass the encoder together, and all the projector: its BatchNorm sees every crop."""
        sizes = itertools.groupby((view.images for view in batch.views), key=Tensor.size)
        features = [self.encoder(torch.cat(list(group))) for _, group in sizes]
        return list(self.projector(torch.cat(features)).chunk(len(batch.views)))

    @torch.no_grad()
    def codes(self, place: int, z: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """The codes of one global view from its scores `rows` [B, K], balanced with those of its queue."""
        queue: Any = self.queues[place] if self.queues else None
        if queue is not None:
            queue.check(len(z))                                                      # long before it is filled
        if queue is not None and self.current_epoch >= self.queue_start:
            if self.full or queue.filled == len(queue.keys):                         # then no longer asks the device
                self.full = True                                                     # others balance the rest of it
                rows = torch.cat([self.prototypes(queue.keys[distributed.rank()::distributed.world_size()]), rows])
            queue.enqueue(unit(z), index)
        return sinkhorn(rows, self.epsilon, self.iterations)[-len(index):]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.full = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step < self.freeze_steps:
            self.prototypes.weight.grad = None                # 0 would not do: Adam still moves by its weight decay

    def on_train_epoch_end(self) -> None:
        loss, chance = float(self.trainer.callback_metrics.get("loss", 0)), math.log(len(self.prototypes.weight))
        if abs(loss - chance) < 0.01 * chance and self.global_step > self.freeze_steps:
            warnings.warn(f"the loss of {loss:.3f} sits at log(prototypes) = {chance:.3f}, as if all were alike: lower "
                          "epsilon to 0.03, take fewer prototypes, raise freeze_steps or queue_start", stacklevel=2)
