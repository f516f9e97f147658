from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_coldest, check_share, global_contrast
from ssl_zoo.memory import SampleTable
from ssl_zoo.method import Batch, Method


class ISogCLR(Method):
    """SogCLR with a temperature of its own for each image, which rises where its negatives are very unlike.

    Qiu et al., ICML 2023, arXiv:2305.11965 (iSogCLR). Where the negatives' weights differ from even ones by more than
    `rho`, the temperature rises, otherwise it falls.

    Args:
        images: the number of images in the training part.
        projector: layer widths of the projector, at least one.
        temperature: of each image at the start.
        gamma: share of the newest batch in an image's average.
        rho: the Kullback-Leibler divergence of an image's weights from even ones to aim at, in nats; below the log of
            the number of negatives.
        temperature_lr: step of a temperature against its gradient.
        beta: share of the newest gradient in a temperature's moving gradient.
        coldest: least temperature.
        hottest: largest temperature.
    """

    def __init__(self, images: int, projector: Sequence[int] = (2048, 128), temperature: float = 0.1,
                 gamma: float = 0.8, rho: float = 0.4, temperature_lr: float = 0.03, beta: float = 0.5,
                 coldest: float = 0.05, hottest: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("ISogCLR")
        if not check_coldest(coldest) <= temperature <= hottest:
            raise ValueError(f"temperatures start between the coldest and the hottest, {coldest} and {hottest}, not at "
                             f"{temperature}")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.table = SampleTable(images, average=0.0, temperature=temperature, gradient=0.0)
        self.gamma, self.beta, self.rho = check_share("gamma", gamma), check_share("beta", beta), rho
        self.temperature_lr, self.coldest, self.hottest = temperature_lr, coldest, hottest

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        averages, old, moving = (self.table.read(name, batch.index) for name in self.table.columns)      # [B] each
        loss, averages, uneven = global_contrast(z1, z2, averages, old, self.gamma)
        gradient = (uneven + self.rho).clamp(-3, 3)                      # the authors' code clips it
        moving = (1 - self.beta) * moving + self.beta * gradient
        temperature = (old - self.temperature_lr * moving).clamp(self.coldest, self.hottest)
        self.table.write(batch.index, average=averages, temperature=temperature, gradient=moving)
        self.log_dict({"temperature/mean": temperature.mean(), "temperature/deviation": temperature.std(correction=0)},
                      batch_size=len(batch.index))
        return loss
