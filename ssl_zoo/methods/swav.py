import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from ssl_zoo.assignment import sinkhorn
from ssl_zoo.heads import Prototypes, mlp
from ssl_zoo.losses import check_temperature, unit
from ssl_zoo.memory import Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.views import by_size


class SwAV(Method):
    """Each view predicts the prototype codes of the global ones. Caron et al., NeurIPS 2020, arXiv:2006.09882.

    Args:
        projector: layer widths of the projector.
        prototypes: the number of prototypes, at least 2; about ten for each class you expect.
        temperature: divides the scores before the softmax of the prediction.
        epsilon: smaller values make sharper codes; try 0.03 if the loss stays at log(prototypes).
        sinkhorn_iterations: rounds of balancing the codes.
        queue: the number of earlier projections of each global view to balance together with a small batch; 0 for none.
        queue_start: the epoch, from 0, at which the queue starts to fill; it takes part in balancing once it is full.
        freeze_steps: the number of optimiser steps before the prototypes begin to learn.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), prototypes: int = 3000, temperature: float = 0.1,
                 epsilon: float = 0.05, sinkhorn_iterations: int = 3, queue: int = 0, queue_start: int = 15,
                 freeze_steps: int = 313, **kwargs: Any):
        super().__init__(**kwargs)
        self.global_views = self.augment.require_views("SwAV", role="global")
        self.projector = mlp(self.encoder.dim, *projector)
        self.prototypes = Prototypes(projector[-1], prototypes)
        self.queues = nn.ModuleList(Queue(queue, projector[-1]) for _ in self.global_views if queue)
        self.temperature, self.epsilon, self.iterations = check_temperature(temperature), epsilon, sinkhorn_iterations
        self.queue_start, self.freeze_steps = queue_start, freeze_steps

    def training_loss(self, batch: Batch) -> Tensor:
        self.prototypes.normalize()
        features = torch.cat([self.encoder(images) for images in by_size(batch.views)])
        z = self.projector(features).chunk(len(batch.views))     # V x [B, D]; one BatchNorm pass over all views
        scores = [self.prototypes(z_v) for z_v in z]                                              # V x [B, K]
        codes = [self.codes(z[g], scores[g], self.queues[i] if self.queues else None, batch)      # G x [B, K]
                 for i, g in enumerate(self.global_views)]
        used = self.prototypes.used(torch.cat([scores[g] for g in self.global_views]))   # balanced codes use them all
        self.log("prototypes/used", used, batch_size=len(batch.index))
        return torch.stack([F.cross_entropy(scores[v] / self.temperature, code)                   # eq. (2)
                            for g, code in zip(self.global_views, codes, strict=True)
                            for v in range(len(scores)) if v != g]).mean()

    @torch.no_grad()
    def codes(self, z: Tensor, scores: Tensor, queue: Any, batch: Batch) -> Tensor:
        """Codes [B, K] that agree with a global view's scores [B, K], balanced together with those of its queue."""
        counted = None
        if queue is not None:
            queue.arriving(len(z))                     # refuses a short queue at the first step, not at queue_start
            if batch.key.epoch >= self.queue_start:
                earlier = self.prototypes(queue.share())   # each process adds its part; sinkhorn sums over processes
                full = queue.full().expand(len(earlier))   # an if on it would make the host wait
                scores, counted = torch.cat([earlier, scores]), F.pad(full, (0, len(z)), value=True)
                queue.enqueue(unit(z), batch.index)
        return sinkhorn(scores, self.epsilon, self.iterations, counted)[-len(z):]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step < self.freeze_steps:
            self.prototypes.weight.grad = None     # not 0: Adam would still apply its weight decay and momentum

    def on_train_epoch_end(self) -> None:
        loss, chance = float(self.trainer.callback_metrics.get("loss", 0)), math.log(len(self.prototypes.weight))
        if abs(loss - chance) < 0.01 * chance and self.global_step > self.freeze_steps:
            rank_zero_warn(f"the loss of {loss:.3f} sits at log(prototypes) = {chance:.3f}, as if all were alike: "
                           "lower epsilon to 0.03, take fewer prototypes, raise freeze_steps or queue_start")
