"""How far projections are from a standard Gaussian, seen along random directions: the parts of LeJEPA and VISReg."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.draws import scrambled
from ssl_zoo.losses import full_precision


class Directions(nn.Module):
    """New random unit vectors for each batch, the same on every process.

    They are a function of a number that a checkpoint holds and that grows with each batch. They are made of it on the
    device and by arithmetic alone: torch.compile keeps them in its graph, and a resumed run sees those that an
    uninterrupted one would have seen.

    Args:
        dim: length D of a vector.
        count: the number of vectors.
    """

    number: Tensor   # [] int64

    def __init__(self, dim: int, count: int):
        super().__init__()
        if count < 1:
            raise ValueError(f"projections are seen along 1 or more directions, not {count}")
        self.register_buffer("number", torch.randint(2 ** 31, ()))       # of the run's seed
        self.dim, self.count = dim, count

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The next vectors, [D, count] float32."""
        self.number.add_(1)
        places = torch.arange(2 * self.dim * self.count, device=self.number.device)
        radius, angle = ((scrambled(places ^ scrambled(self.number)) + 0.5) / 2 ** 32).chunk(2)     # above 0, up to 1
        normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()                    # Box and Muller
        vectors = normal.view(self.dim, self.count)
        return vectors / vectors.norm(dim=0)


def require_images(z: Tensor) -> Tensor:
    """Return the projections [V, N, D], or raise where there is no image to project."""
    if not z.shape[1]:
        raise ValueError(f"projections of shape {list(z.shape)} are of no image: give one or more")
    return z


@full_precision
def epps_pulley(z: Tensor, directions: Tensor, knots: int = 17, limit: float = 3.0) -> Tensor:
    """The distance of projections from a standard Gaussian by their characteristic functions along directions.

    SIGReg of LeJEPA, arXiv:2511.08544: along each direction N times the integral, from -limit to limit, of the squared
    difference of the two functions, weighted with the Gaussian's; the mean over directions and views. It is 0 only
    for a Gaussian, and N * 0.40 where all projections are 0. N counts the images of all processes.

    Args:
        z: projections [V, B, D].
        directions: unit vectors [D, S].
        knots: the number of points of the trapezoidal rule between 0 and `limit`; the integrand is even.
        limit: largest frequency.
    """
    t = torch.linspace(0, limit, knots, dtype=z.dtype, device=z.device)
    gaussian = (-t.square() / 2).exp()                                                    # [knots]
    steps = torch.full_like(t, 2 * limit / (knots - 1))
    steps[-1] /= 2                             # and the first counts nothing: both functions are 1 at 0
    angles = (require_images(z) @ directions.to(z.dtype))[..., None] * t                     # [V, B, S, knots]
    found = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])                     # [2, V, S, knots]
    real, imaginary = distributed.gather(found[None]).mean(0)
    distance = (real - gaussian).square() + imaginary.square()
    return (distance @ (steps * gaussian)).mean() * z.shape[1] * distributed.world_size()


@full_precision
def sliced_wasserstein(z: Tensor, directions: Tensor) -> Tensor:
    """The squared distance of sorted projections from a standard Gaussian's quantiles, along directions.

    Eq. (5) of VISReg, arXiv:2606.02572; the mean over directions, images and views.

    Args:
        z: projections of all processes [V, N, D].
        directions: unit vectors [D, S].
    """
    places = torch.arange(1, z.shape[1] + 1, dtype=torch.float64, device=z.device) / (z.shape[1] + 1)
    quantiles = torch.special.ndtri(places).to(z.dtype)                                   # [N]
    return ((require_images(z) @ directions.to(z.dtype)).sort(1).values - quantiles[:, None]).square().mean()


@full_precision
def distance_to_centre(z: Tensor, global_views: Sequence[int]) -> Tensor:
    """The mean square, over views, images and columns, of projections [V, B, D] less the mean of the global views'.

    The prediction of LeJEPA and of eq. (8) of VISReg. The gradient flows through the mean too.
    """
    return (z - z[global_views].mean(0)).square().mean()
