from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_weight
from ssl_zoo.method import Batch, Method
from ssl_zoo.sketching import Directions, distance_to_centre, epps_pulley


class LeJEPA(Method):
    """Every view's projection is the mean of the global ones', and each view's projections are a standard Gaussian.

    Balestriero and LeCun, 2025, arXiv:2511.08544, algorithm 2: the Gaussian is tested along random directions (SIGReg),
    which are new for each batch. Views without roles are all global.

    Args:
        projector: layer widths of the projector.
        gaussian_weight: weight of the Gaussian, 0 to 1; the prediction has the rest. The paper's lambda.
        directions: the number of random directions.
        knots: the number of frequencies, from 0 to `limit`, at which the characteristic functions are compared.
        limit: largest of these frequencies.
    """

    def __init__(self, projector: Sequence[int] = (2048, 2048, 64), gaussian_weight: float = 0.05,
                 directions: int = 1024, knots: int = 17, limit: float = 3.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.global_views = self.augment.require_views("LeJEPA", or_more=True, role="global")
        self.projector = mlp(self.encoder.dim, *projector)
        self.directions = Directions(projector[-1], directions)
        if knots < 2 or not limit > 0:
            raise ValueError(f"functions are compared at 2 or more frequencies above 0, not {knots} up to {limit}")
        self.gaussian_weight = check_weight("gaussian_weight", gaussian_weight, papers=0.05)
        self.knots, self.limit = knots, limit

    def training_loss(self, batch: Batch) -> Tensor:
        z = torch.stack([self.projector(self.encoder(view.images)) for view in batch.views])     # [V, B, D]
        prediction = distance_to_centre(z, self.global_views)
        gaussian = epps_pulley(z, self.directions(), self.knots, self.limit)
        self.log_dict({"loss/prediction": prediction.detach(), "loss/gaussian": gaussian.detach()},
                      batch_size=len(batch.index))
        return (1 - self.gaussian_weight) * prediction + self.gaussian_weight * gaussian
