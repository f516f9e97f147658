from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_choice, check_temperature, require_others
from ssl_zoo.method import Batch, Method
from ssl_zoo.multi_view import average, mv_dhel, mv_info_nce, pairwise, poly_view

Aggregate = Literal["pairwise", "average", "poly_view"]
AGGREGATES = {"pairwise": pairwise, "average": average, "poly_view": poly_view}


class MVInfoNCE(Method):
    """All views of an image are compared at once, with each other and with all views of all other images.

    Koromilas et al., 2025, arXiv:2507.06979. Two or more views of any size; time grows with their number squared.

    Args:
        projector: layer widths of the projector, at least one.
        temperature: divides the cosine similarities; 0.5 for small images, 0.1 for ImageNet.
        same_view_negatives: compare an image with others in the same view too, as the published code does and the
            paper's formula does not.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.5,
                 same_view_negatives: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("MVInfoNCE", or_more=True)
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.temperature, self.same_view_negatives = check_temperature(temperature), same_view_negatives

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        return mv_info_nce(z, self.temperature, self.same_view_negatives)


class MVDHEL(Method):
    """All views of an image agree at once, and each view by itself keeps the images apart.

    Koromilas et al., 2025, arXiv:2507.06979. Two or more views of any size; time grows with their number.

    Args:
        projector: layer widths of the projector, at least one.
        temperature: divides the cosine similarities; 0.5 for small images, 0.1 for ImageNet.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("MVDHEL", or_more=True)
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.temperature = check_temperature(temperature)

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        return mv_dhel(z, self.temperature)


class ViewAggregate(Method):
    """What the paper of MVInfoNCE and MVDHEL compares them with: SimCLR's loss, averaged over more than two views.

    Args:
        aggregate: "pairwise": the mean over pairs of views; "average": each view with the mean of the others;
            "poly_view": each pair against all views of all other images, arXiv:2403.05490.
        projector: layer widths of the projector, at least one.
        temperature: divides the cosine similarities; 0.5 for small images, 0.1 for ImageNet.
    """

    def __init__(self, aggregate: Aggregate = "pairwise", projector: Sequence[int] = (2048, 128),
                 temperature: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("ViewAggregate", or_more=True)
        self.loss = AGGREGATES[check_choice("aggregate", aggregate, Aggregate)]
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.temperature = check_temperature(temperature)

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        require_others(z[0], "ViewAggregate")
        return self.loss(z, self.temperature)
