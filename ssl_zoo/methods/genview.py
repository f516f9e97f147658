"""Weights of pairs by the quality of their views, for SimCLR, MoCo, MoCo v3, BYOL and SimSiam.

Li et al., ECCV 2024, arXiv:2403.12003 (GenView). Its other half, views that a diffusion model makes, is not here.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssl_zoo import paths
from ssl_zoo.checkpoints import read_encoder
from ssl_zoo.encoders import check_size
from ssl_zoo.quality import quality_weights
from ssl_zoo.views import Augmentation, View


class PairWeights(nn.Module):
    """How much each pair of views counts: more where the foregrounds are alike and the backgrounds are not.

    Args:
        judge: a frozen encoder that has maps, as ssl-zoo evaluate takes one: a file, or a name with weights. Without
            one all pairs count alike.
        augment: draws the views.
    """

    def __init__(self, judge: str | None, augment: Augmentation):
        super().__init__()
        self.judge = None if judge is None else Frozen(judge, {spec.size for spec in augment.views})

    def forward(self, views: Sequence[View]) -> Tensor:
        """Weights [V, V, B] of each view with each other, 1 on average over the images of all processes.

        [V, V, 1] ones without a judge.
        """
        if self.judge is None:
            return torch.ones(len(views), len(views), 1, device=views[0].images.device)
        return quality_weights(self.judge([view.images for view in views]))


class Frozen(nn.Module):
    """An encoder that does not learn and that no checkpoint holds: a resumed run reads its file again.

    Args:
        given: a file, or a name with weights.
        sizes: of the views that it will see, pixels.
    """

    def __init__(self, given: str, sizes: Iterable[int]):
        super().__init__()
        name, weights = paths.name_and_weights(given)
        if not (weights or name.endswith(".ckpt") or paths.is_exported(name)) and paths.may_be_model(name):
            raise ValueError(f"the judge {given} would have random weights: name a file of them, as in "
                             f"{given}={given}.pth, or an encoder that a run left")
        self.encoder = read_encoder(given).requires_grad_(False).eval()
        self.register_load_state_dict_pre_hook(keep_own)
        for size in sizes:
            check_size(self.encoder, size)
            cells = self([torch.zeros(1, self.encoder.channels, size, size)])[0][0, 0].numel()
            if cells < 4:
                raise ValueError(f"the judge {given} sees a view of {size} pixels as {cells} cell{'s' * (cells > 1)}, "
                                 "too few for a foreground and a background: draw larger views, or take another judge")

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The maps [B, C, h, w] of each view."""
        return [self.encoder.maps(x) for x in images]

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        self.encoder.training = mode      # of itself alone: whether it looks at the values of all images, or the first
        return self

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination


def keep_own(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a checkpoint without this module's tensors load: they stay as they are."""
    state.update({f"{prefix}encoder.{name}": value for name, value in module.encoder.state_dict().items()})
