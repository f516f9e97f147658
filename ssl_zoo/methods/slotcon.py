from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.heads import mlp, pixel_mlp
from ssl_zoo.losses import check_temperature, check_weight
from ssl_zoo.memory import Centre, MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.schedules import cosine
from ssl_zoo.slots import SemanticGrouping, aligned, nearest_to_some, rows, slot_contrast
from ssl_zoo.views.crops import cell_centres, intersection


class SlotCon(Method):
    """Prototypes group the cells of a map; at each place two views agree on the group, and so do groups as a whole.

    Wen et al., NeurIPS 2022, arXiv:2205.15288. For dense tasks; give the second row of views an `overlap`. The averaged
    encoder is evaluated and exported, as in the authors' code.

    Args:
        projector: layer widths of the 1x1 convolutions on the map, and of the predictor of the slots.
        prototypes: the number of groups; 256 for COCO, 2048 for ImageNet.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        student_temperature: divides the cosines with the prototypes in the prediction.
        teacher_temperature: divides them in the target, and where cells are shared among groups.
        temperature: divides the cosines of slots.
        centre_momentum: share of the centre of the teacher's cosines kept at each batch.
        grouping_weight: weight of the agreement at each place, 0 to 1; that of whole groups has the rest.
        encoder: images -> features; what pretraining is for. Its maps must have more than one cell.
    """

    def __init__(self, projector: Sequence[int] = (4096, 4096, 256), prototypes: int = 256, momentum: float = 0.99,
                 student_temperature: float = 0.1, teacher_temperature: float = 0.07, temperature: float = 0.2,
                 centre_momentum: float = 0.9, grouping_weight: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("SlotCon", places=True)
        self.projector = pixel_mlp(self.encoder.dim, *projector, activation=nn.GELU)
        self.predictor = mlp(projector[-1], *projector, activation=nn.GELU)
        self.grouping = SemanticGrouping(projector[-1], prototypes, check_temperature(teacher_temperature))
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector, self.grouping)
        self.centre = Centre(prototypes, centre_momentum)
        self.student_temperature, self.temperature = map(check_temperature, (student_temperature, temperature))
        self.grouping_weight, self.momentum = check_weight("grouping_weight", grouping_weight, papers=0.5), momentum

    @property
    def evaluated(self) -> Any:
        return self.momentum_encoder.average[0]

    def training_loss(self, batch: Batch) -> Tensor:
        first, second = batch.views
        encoder, projector, grouping = self.momentum_encoder
        online = [self.grouping(self.projector(self.encoder.maps(view.images))) for view in batch.views]
        with torch.no_grad():
            target = [grouping(projector(encoder.maps(view.images))) for view in batch.views]   # type: ignore[operator]
        shared = intersection(first.boxes, second.boxes)
        places = cell_centres(shared, torch.zeros_like(first.flipped), *online[0][1].shape[2:])   # [B, h, w, 2]
        s1, s2, t1, t2 = (aligned(scores, view, places) for (_, scores), view in
                          zip(online + target, batch.views * 2, strict=True))                   # [B, h, w, K]
        both = (shared[:, 2:] > shared[:, :2]).all(1)[:, None, None]                            # views that overlap
        grouped = self.place_loss(s1, t2, both) + self.place_loss(s2, t1, both)
        whole = self.slot_loss(online[0], target[1]) + self.slot_loss(online[1], target[0])
        self.centre.update(torch.cat([scores for _, scores in target]).movedim(1, -1))
        return self.grouping_weight * grouped + (1 - self.grouping_weight) * whole

    def place_loss(self, scores: Tensor, target: Tensor, shared: Tensor) -> Tensor:
        """Cross entropy of the cosines [B, h, w, K] of two views at each place; 0 for images whose views share none."""
        target = (self.centre(target) / self.grouping.temperature).softmax(-1)
        return -((target * (scores / self.student_temperature).log_softmax(-1)).sum(-1) * shared).mean()

    def slot_loss(self, online: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Slots of one view find those of the other: prototypes that are nearest to some cell, a query's in both."""
        (slots, scores), (keys, there) = online, target
        nearest_there = nearest_to_some(there)                                           # [B, K]
        most = min(keys.shape[1], there[0, 0].numel())       # a map has no more; BatchNorm sees those that do not count
        counts, own = (nearest_to_some(scores) * nearest_there).topk(most, sorted=False)
        valid, others = nearest_there.topk(most, sorted=False)                           # [B, most]
        prediction = self.predictor(rows(slots, own))
        return slot_contrast(prediction, rows(keys, own), counts.flatten(), rows(keys, others), valid.flatten(),
                             self.temperature)

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=cosine(self.momentum, 1.0, self.progress))
