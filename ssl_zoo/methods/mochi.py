from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import Contrast, check_choice, check_temperature, contrast, mean_cosines, queue_similarities, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.mixing import draw_mixture, hard_similarities, hardest_keys


class MoCHi(Method):
    """MoCo against negatives that are harder than any in the queue: mixed from its hardest, and with the query itself.

    Kalantidis et al., NeurIPS 2020, arXiv:2010.01028. Without mixed negatives it is MoCo. Logs the share of queries
    that find an older key of their own image among the hardest: shorten the queue if that share is large.

    Args:
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the cosine similarities.
        queue: the number of keys to remember; keep it well below the number of images, since an image's own old keys
            are among the hardest.
        momentum: share of the momentum encoder kept at each step.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        contrast: "info_nce", or "decoupled" or "weighted_decoupled" for DCL over the mixed queue.
        hardest: how many of the queue's keys most similar to a query may be mixed for it; the paper's N.
        pairs: how many negatives to mix from two of those keys; the paper's s.
        with_query: how many negatives to mix from one of them and the query; the paper's s'.
        start: the first epoch with mixed negatives; 15 on ImageNet.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.2, queue: int = 65536,
                 momentum: float = 0.999, splits: int = 1, contrast: Contrast = "info_nce", hardest: int = 1024,
                 pairs: int = 1024, with_query: int = 128, start: int = 15, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("MoCHi")
        if not 2 <= hardest <= queue:
            raise ValueError(f"MoCHi mixes 2 or more keys of its queue of {queue}, and hardest is {hardest}")
        if min(pairs, with_query) < 0:
            raise ValueError(f"MoCHi mixes 0 or more pairs and 0 or more with the query, not {pairs} and {with_query}")
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue = Queue(queue, projector[-1])
        self.temperature, self.momentum, self.splits = check_temperature(temperature), momentum, splits
        self.hardest, self.pairs, self.with_query = hardest, pairs, with_query
        self.start, self.contrast = start, check_choice("contrast", contrast, Contrast)

    def training_loss(self, batch: Batch) -> Tensor:
        query_images, key_images = (view.images for view in batch.views)
        queue = self.queue.snapshot()                                                 # [K, D]
        query = self.projector(self.encoder(query_images))                            # [B, D]
        key = unit(self.momentum_encoder.keys(key_images, batch.key, self.splits))
        positive, negative = queue_similarities(query, key, queue)
        logged = mean_cosines(positive, negative)
        if batch.key.epoch >= self.start and self.pairs + self.with_query:
            drawn = draw_mixture(batch.key, len(query), self.hardest, self.pairs, self.with_query, query.device)
            hardest = hardest_keys(query, queue, self.hardest)                        # [B, N] places
            mixed = hard_similarities(query, queue, hardest, drawn)                   # [B, s + s']
            negative = negative._replace(besides=mixed)                               # [B, K + s + s']
            own = (self.queue.index[hardest] == batch.index[:, None]).any(1)          # the same image's older keys
            logged["hardest/same_image"] = own.float().mean()
        self.queue.enqueue(key, batch.index)
        self.log_dict(logged, batch_size=len(query))
        return contrast(positive, negative, self.temperature, self.contrast)

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)
