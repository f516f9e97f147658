"""Few-shot accuracy: many small problems of 5 classes, each learnt from 1 or 5 images of each class."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.classifiers import logistic
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.evaluation.score import Score

WAYS = 5          # classes of an episode
SHOTS = (1, 5)    # labelled images of each of its classes, the support
QUERIES_PER_CLASS = 15      # images of each of its classes to tell apart
EPISODES = 600
CHUNK = 50        # episodes at a time

EPSILON = 0.05    # of OpTA: weight of the plan's entropy against costs of at most 1
PASSES = 5        # of OpTA with one shot


def fewshot(test: Features) -> tuple[dict[str, Score], list[str]]:
    """Score each classifier over 600 episodes of the test part; a sentence says which episodes it is too small for.

    The episodes depend on the labels alone: every encoder sees the same. fewshot/5way_1shot is the nearest class mean
    by cosine, which looks at one query at a time. fewshot/opta_transductive_5way_1shot looks at all queries of a task
    together and assumes that each class has the same number of them, which is true here: compare it only with others
    that assume this.
    """
    require_finite(test.x, "test")
    scores, left_out = {}, []
    for shots in SHOTS:
        name, images = f"{WAYS}way_{shots}shot", shots + QUERIES_PER_CLASS
        classes = with_images(test.labels, images)
        if len(classes) < WAYS:
            left_out.append(f"fewshot/{name}: {len(classes)} classes have the {images} test images that an episode "
                            f"takes of each of {WAYS}")
            continue
        rows = draw(classes, images).to(test.x.device)
        for kind, classify in (("", by_class_mean), ("opta_transductive_", by_transport)):
            units = [accuracy(classify, test.x[some].float(), shots) for some in rows.split(CHUNK)]
            scores[f"fewshot/{kind}{name}"] = Score(torch.cat(units).cpu(), "episode")
    return scores, left_out


def accuracy(classify: Callable[[Tensor, Tensor], Tensor], x: Tensor, shots: int) -> Tensor:
    """Share [E] of the queries that are right, of episodes with features [E, WAYS, shots + QUERIES_PER_CLASS, D]."""
    with torch.autocast(x.device.type, enabled=False):
        predicted = classify(x[:, :, :shots], x[:, :, shots:].flatten(1, 2))     # [E, WAYS * QUERIES_PER_CLASS]
    truth = torch.arange(WAYS, device=x.device).repeat_interleave(QUERIES_PER_CLASS)
    return (predicted == truth).double().mean(1)


def with_images(labels: Tensor, images: int) -> list[Tensor]:
    """The rows of each class that has at least `images` images; labels [N] are -1 where unknown."""
    rows = labels.cpu().argsort(stable=True).split((labels.cpu() + 1).bincount().tolist())
    return [some for some in rows[1:] if len(some) >= images]


def draw(classes: list[Tensor], images: int) -> Tensor:
    """Draw rows [EPISODES, WAYS, images]: different classes, and different images of each; always the same ones."""
    generator = torch.Generator().manual_seed(0)

    def some(count: int, of: int) -> Tensor:
        return torch.randperm(of, generator=generator)[:count]

    return torch.stack([torch.stack([classes[c][some(images, len(classes[c]))]
                                     for c in some(WAYS, len(classes)).tolist()]) for _ in range(EPISODES)])


def by_class_mean(support: Tensor, queries: Tensor) -> Tensor:
    """Classes [E, M] of queries [E, M, D]: the class mean of unit features, support [E, W, S, D], of largest cosine."""
    means = F.normalize(F.normalize(support, dim=-1).mean(2), dim=-1)
    return (queries @ means.mT).argmax(-1)


def by_transport(support: Tensor, queries: Tensor) -> Tensor:
    """Classes [E, M] of queries [E, M, D] by OpTA, sec. 3.3 of BECLR, arXiv:2402.02444, with the settings of its code.

    The class means of the support [E, W, S, D] move to the queries that optimal transport gives them; a logistic
    regression on the means, one image of each class, then judges the queries. Features are standardised each over its
    channels. It is transductive: a query's class depends on the others, of which each class must have equally many.
    """
    support, queries = standardise(support), standardise(queries)
    prototypes = support.mean(2)                                                           # [E, W, D]
    if support.shape[2] == 1:
        for _ in range(PASSES):
            prototypes = align(prototypes, queries)
    else:
        prototypes = 0.7 * align(prototypes, queries) + 0.3 * prototypes
    ways = torch.arange(prototypes.shape[1], device=queries.device).expand(prototypes.shape[:2])
    return logistic(prototypes, ways, prototypes.shape[1], standardise=False).predict(queries)


def standardise(x: Tensor) -> Tensor:
    """Bring each feature [..., D] to mean 0 and deviation 1 over its channels; to 0 if they are all equal."""
    std, mean = torch.std_mean(x, -1, keepdim=True)
    return (x - mean) / torch.where(std > 1e-6 * mean.abs(), std, torch.inf)


def align(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Move prototypes [E, W, D] to the means of the queries [E, M, D], weighted by what the plan sends to each."""
    return transport_plan(prototypes, queries) @ queries


def transport_plan(prototypes: Tensor, queries: Tensor) -> Tensor:
    """[E, W, M]: the rows of the optimal transport plan from the prototypes to the queries, each divided by its sum.

    Sinkhorn's algorithm in logarithms; costs are squared distances over the largest of the episode, both margins
    uniform. At most 1000 iterations, until no episode's row potentials change by more than 1e-4 in sum.
    """
    cost = torch.cdist(prototypes, queries).square()
    logits = -cost / (EPSILON * cost.amax((1, 2), keepdim=True).clamp_min(1e-30))          # [E, W, M]
    rows, columns = torch.zeros_like(logits[:, :, :1]), torch.zeros_like(logits[:, :1])
    for _ in range(1000):
        before = rows
        rows = -math.log(logits.shape[1]) - (logits + columns).logsumexp(2, keepdim=True)
        columns = -math.log(logits.shape[2]) - (logits + rows).logsumexp(1, keepdim=True)
        if EPSILON * (rows - before).abs().sum(1).max() < 1e-4:
            break
    return (logits + columns).softmax(2)
