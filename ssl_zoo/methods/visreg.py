from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_weight, full_precision, gather_views
from ssl_zoo.method import Batch, Method
from ssl_zoo.sketching import Directions, distance_to_centre, sliced_wasserstein


class VISReg(Method):
    """LeJEPA whose Gaussian is pursued in three parts: a centre of 0, a scale of 1, and a shape along directions.

    Wu, Balestriero and Levine, 2026, arXiv:2606.02572, eq. (1) to (8). The statistics are over the images of all
    processes, which share their directions; the authors' processes each draw their own. Views without roles are all
    global.

    Args:
        projector: layer widths of the projector.
        gaussian_weight: weight of the three parts together, 0 to 1; the prediction has the rest. The paper's lambda.
        directions: the number of random directions.
        shape_weight: weight of the shape among the three.
        scale_weight: weight of the scale among the three.
        centre_weight: weight of the centre among the three.
    """

    def __init__(self, projector: Sequence[int] = (2048, 2048, 64), gaussian_weight: float = 0.9,
                 directions: int = 4096, shape_weight: float = 1.0, scale_weight: float = 1.0,
                 centre_weight: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.global_views = self.augment.require_views("VISReg", or_more=True, role="global")
        self.projector = mlp(self.encoder.dim, *projector)
        self.directions = Directions(projector[-1], directions)
        self.gaussian_weight = check_weight("gaussian_weight", gaussian_weight, papers=0.9)
        self.weights = shape_weight, scale_weight, centre_weight

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        prediction = distance_to_centre(z, self.global_views)
        shape, scale, centre = parts = gaussian_parts(gather_views(z, "VISReg"), self.directions())
        self.log_dict({"loss/prediction": prediction.detach(), "loss/shape": shape.detach(),
                       "loss/scale": scale.detach(), "loss/centre": centre.detach()}, batch_size=len(batch.index))
        gaussian = (z.new_tensor(self.weights) * torch.stack(parts)).sum()
        return (1 - self.gaussian_weight) * prediction + self.gaussian_weight * gaussian


@full_precision
def gaussian_parts(z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, scale and centre: how far projections [V, N, D] are from a standard Gaussian, eq. (5), (1) and (6).

    The shape is of projections that have been centred and scaled, by deviations that take no gradient.
    """
    centre, deviation = z.mean(1, keepdim=True), z.std(1, correction=0, keepdim=True)     # [V, 1, D]
    shape = sliced_wasserstein((z - centre) / (deviation.detach() + 1e-4), directions)
    return shape, (1 - deviation).square().mean(), centre.square().mean()
