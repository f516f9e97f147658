import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.encoders import evaluation_mode
from ssl_zoo.heads import mlp
from ssl_zoo.losses import full_precision, unit
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.schedules import cosine
from ssl_zoo.views import by_size
from ssl_zoo.vocabulary import Vocabulary


class OBoW(Method):
    """Crops of an image predict the bag of visual words that a teacher finds in all of it, at several levels.

    Gidaris et al., CVPR 2021, arXiv:2012.11552. The words are features of earlier images, and the layer that predicts
    them is generated from them. Views of the role teacher make bags, which all others predict; two views without roles
    predict each other's. Losses are means over the views of one size, and add up over sizes.

    Args:
        words: the number of words of each level.
        levels: how many of the encoder's last stages have a vocabulary.
        sharpness: of the assignment to words; the paper's 1 / delta.
        scale: multiplies the predictions; the paper's kappa.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        encoder: images -> features; what pretraining is for. It must have maps, of 3 x 3 cells or more.
    """

    def __init__(self, words: int = 8192, levels: int = 2, sharpness: float = 15.0, scale: float = 8.0,
                 momentum: float = 0.99, **kwargs: Any):
        super().__init__(**kwargs)
        if not (sharpness > 0 and scale > 0):
            raise ValueError(f"OBoW's sharpness and scale are above 0, not {sharpness} and {scale}: the paper's are 15 "
                             "and 8")
        self.teachers = self.augment.require_views("OBoW", role="teacher")
        every = range(self.augment.count)
        self.students = [view for view in every if view not in self.teachers] or list(every)
        self.momentum_encoder = MomentumEncoder(self.encoder)
        widths = stage_widths(self.encoder, levels, [spec.size for spec in self.augment.views
                                                     for _ in range(spec.count)][self.teachers[0]])
        self.vocabularies: Any = nn.ModuleList(Vocabulary(words, width, sharpness) for width in widths)
        self.generators = nn.ModuleList(mlp(width, 2 * self.encoder.dim, self.encoder.dim) for width in widths)
        self.scale, self.momentum = scale, momentum

    def training_loss(self, batch: Batch) -> Tensor:
        students = [batch.views[v] for v in self.students]
        features = torch.cat([self.encoder(images) for images in by_size(students)]).chunk(len(students))   # [B, D]
        weights = [generator(unit(vocabulary.queue.snapshot()))                          # levels x [K, D]
                   for vocabulary, generator in zip(self.vocabularies, self.generators, strict=True)]
        bags = self.bags(batch)                                                          # levels x [B, teachers, K]
        losses: dict[int, list[Tensor]] = {}
        pairs = itertools.product(zip(self.students, features, strict=True), enumerate(self.teachers))
        for (v, x), (place, t) in pairs:
            if v != t:
                losses.setdefault(batch.views[v].images.shape[-1], []).extend(
                    divergence(x, weight, bag[:, place], self.scale) for weight, bag in zip(weights, bags, strict=True))
        used = bags[-1].mean((0, 1))                                                     # [K]
        self.log("words/perplexity", (-torch.xlogy(used, used).sum()).exp(), batch_size=len(batch.index))
        return torch.stack([torch.stack(of_size).mean() for of_size in losses.values()]).sum()

    @torch.no_grad()
    def bags(self, batch: Batch) -> list[Tensor]:
        """The bags [B, teachers, K] of each level."""
        teacher: Any = self.momentum_encoder.average[0]
        levels = zip(*(teacher.stage_maps(batch.views[t].images) for t in self.teachers), strict=True)
        last = list(levels)[-len(self.vocabularies):]
        count = len(self.teachers)
        index = batch.index.repeat_interleave(count)        # image by image, for draws are by the rows of all processes
        return [vocabulary.bags(torch.stack(maps, 1).flatten(0, 1), index).unflatten(0, (-1, count))
                for vocabulary, maps in zip(self.vocabularies, last, strict=True)]

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=cosine(self.momentum, 1.0, self.progress))


@full_precision
def divergence(features: Tensor, weight: Tensor, bag: Tensor, scale: float) -> Tensor:
    """The Kullback-Leibler divergence of bags [B, K] from those that features [B, D] predict with a weight [K, D]."""
    return F.kl_div((scale * features @ unit(weight).T).log_softmax(1), bag.to(features.dtype), reduction="batchmean")


def stage_widths(encoder: Any, levels: int, size: int) -> list[int]:
    """The channels of an encoder's last stages, or one sentence on why they have no vocabularies."""
    with evaluation_mode(encoder):
        maps = encoder.stage_maps(torch.zeros(2, encoder.channels, size, size))
    if not 1 <= levels <= len(maps):
        raise ValueError(f"OBoW finds words at 1 to {len(maps)} levels of this encoder, not at {levels}: set levels")
    for x in maps[-levels:]:
        if min(x.shape[2:]) < 3:
            raise ValueError("OBoW makes words of 3 x 3 cells, and a map of the teacher's view has "
                             f"{x.shape[2]} x {x.shape[3]}: draw it larger than {size} pixels, or lower levels")
    return [x.shape[1] for x in maps[-levels:]]
