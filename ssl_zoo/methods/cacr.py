from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_temperature, contrast, full_precision, key_similarities, require_others
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.multi_view import attraction, repulsion
from ssl_zoo.schedules import cosine


class CACR(Method):
    """Views of an image attract each other, the far ones more; other images repel, the near ones more.

    Zheng et al., TMLR 2023, arXiv:2105.03746, with squared distances. Two or more views of any size.

    Args:
        projector: layer widths of the projector, at least one.
        positive_sharpness: how much more a far view counts; 0 weighs all views alike.
        negative_sharpness: how much more a near image counts; 0 weighs all images alike, and 2.0 is the paper's for
            CIFAR-100 and STL-10.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), positive_sharpness: float = 1.0,
                 negative_sharpness: float = 0.9, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("CACR", or_more=True)
        if not min(positive_sharpness, negative_sharpness) >= 0:
            raise ValueError(f"CACR weighs pairs with a sharpness of 0 or more, not {positive_sharpness} and "
                             f"{negative_sharpness}")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.positive_sharpness, self.negative_sharpness = positive_sharpness, negative_sharpness

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        attracts, repels = attraction(z, self.positive_sharpness), repulsion(z, self.negative_sharpness)
        self.log_dict({"loss/attraction": attracts.detach(), "loss/repulsion": repels.detach()}, batch_size=z.shape[1])
        return attracts + repels


class CACRMoCoV3(Method):
    """MoCo v3 with any number of views: of the predictions that should find a key, the far ones count more.

    CACR's form for ImageNet, with the authors' default, the RBF cost. The keys are those of the global views, or of
    all where no view has a role. With two views it is MoCo v3 at half the loss.

    Args:
        projector: layer widths of the projector; for a ViT three, 4096, 4096 and 256.
        predictor: hidden widths of the predictor.
        predictor_norm: end the predictor with a BatchNorm, as the authors' code does for a ViT.
        temperature: divides the cosine similarities and, in the weights, the squared distances; 0.2 for a ViT.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
    """

    def __init__(self, projector: Sequence[int] = (4096, 256), predictor: Sequence[int] = (4096,),
                 predictor_norm: bool = False, temperature: float = 1.0, momentum: float = 0.996, **kwargs: Any):
        super().__init__(**kwargs)
        self.keys = self.augment.require_views("CACRMoCoV3", or_more=True, role="global")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True, last_scale=False)
        self.predictor = mlp(projector[-1], *predictor, projector[-1], bias=False, last_norm=predictor_norm,
                             last_scale=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.temperature, self.momentum = check_temperature(temperature), momentum

    def training_loss(self, batch: Batch) -> Tensor:
        q = [self.predictor(self.projector(self.encoder(view.images))) for view in batch.views]      # V x [B, D]
        require_others(q[0], "CACRMoCoV3")
        losses = [momentum_attraction(q[:g] + q[g + 1:], self.momentum_encoder(batch.views[g].images), self.temperature)
                  for g in self.keys]
        return torch.stack(losses).mean()

    def after_step(self) -> None:
        momentum = cosine(self.momentum, 1.0, self.progress)
        self.momentum_encoder.update(momentum=momentum)


@full_precision
def momentum_attraction(queries: Sequence[Tensor], key: Tensor, temperature: float) -> Tensor:
    """2 * temperature * InfoNCE of each query [B, D] with the keys [B, D], weighted by softmax(distance / temperature).

    The softmax is over the queries of an image, of their squared distances from its key, and has no gradient.
    """
    terms, positive = [], []
    for query in queries:
        similarities = key_similarities(query, key)
        terms.append(contrast(*similarities, temperature, reduction="none"))
        positive.append(similarities[0].detach())
    weights = ((2 - 2 * torch.stack(positive)) / temperature).softmax(0)                         # [V - 1, B]
    return 2 * temperature * (weights * torch.stack(terms)).sum(0).mean()
