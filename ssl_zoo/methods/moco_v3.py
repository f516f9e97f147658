from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_temperature, contrast, key_similarities, require_others
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.genview import PairWeights
from ssl_zoo.schedules import cosine


class MoCoV3(Method):
    """Each view's prediction finds the momentum encoder's projection of the other among the batch's, without a queue.

    Chen et al., ICCV 2021, arXiv:2104.02057. The loss is that of algorithm 1, which multiplies by 2 * temperature.

    Args:
        projector: layer widths of the projector; for a ViT three, 4096, 4096 and 256.
        predictor: hidden widths of the predictor.
        predictor_norm: end the predictor with a BatchNorm, as the authors' code does for a ViT.
        temperature: divides the cosine similarities; 1.0 for a ResNet, 0.2 for a ViT.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        freeze_patches: do not train a ViT's patch projection, which keeps the training stable (sec. 4.3).
        judge: a frozen encoder by which pairs of good views count more (GenView): a file, or a name with weights, as
            ssl-zoo evaluate takes them. Without one all pairs count alike.
    """

    def __init__(self, projector: Sequence[int] = (4096, 256), predictor: Sequence[int] = (4096,),
                 predictor_norm: bool = False, temperature: float = 1.0, momentum: float = 0.99,
                 freeze_patches: bool = False, judge: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views(type(self).__name__)
        if freeze_patches:
            freeze_patch_projection(self.encoder.backbone)
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True, last_scale=False)
        self.predictor = mlp(projector[-1], *predictor, projector[-1], bias=False, last_norm=predictor_norm,
                             last_scale=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.temperature, self.momentum = check_temperature(temperature), momentum
        self.pair_weights = PairWeights(judge, self.augment)

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        q1, q2 = (self.predictor(self.projector(self.encoder(x))) for x in (x1, x2))     # [B, D] each
        require_others(q1, "MoCoV3")
        k1, k2 = (self.momentum_encoder(x) for x in (x1, x2))
        losses = [contrast(*key_similarities(q, k), self.temperature, reduction="none")              # [B] each
                  for q, k in ((q1, k2), (q2, k1))]
        return 2 * self.temperature * ((losses[0] + losses[1]) * self.pair_weights(batch.views)[0, 1]).mean()

    def after_step(self) -> None:
        momentum = cosine(self.momentum, 1.0, self.progress)
        self.momentum_encoder.update(momentum=momentum)


def freeze_patch_projection(backbone: Any) -> None:
    if not hasattr(backbone, "patch_embed"):
        raise ValueError(f"a {type(backbone).__name__} has no patch projection to freeze: leave freeze_patches out")
    backbone.patch_embed.requires_grad_(False)
