"""What do torchmetrics' functions cost beside ours, where both count the same? Seconds of processor time, one thread.

At the size of an evaluation of CIFAR-10: 10,000 test images and, for retrieval, a bank of 50,000 with 128 features and
ten classes; for masks 8 of 512 x 512 pixels with 21 classes. Medians of interleaved rounds; both results are compared
before they are timed. For retrieval both rank the same 50 queries, cosines and all.

    python benchmarks/torchmetrics_cost.py             about a minute
    python benchmarks/torchmetrics_cost.py --rounds 1  fewer than 5 rounds; nothing is written
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from record import record
from torch import Tensor
from torchmetrics.functional import classification
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from ssl_zoo.evaluation.dense import confusion, mean_iou
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.nearest import inverse_norms
from ssl_zoo.evaluation.retrieval import judge
from ssl_zoo.losses import unit

TEST, BANK, WIDTH, CLASSES, QUERIES = 10_000, 50_000, 128, 10, 50
MASKS, SIDE, PIXEL_CLASSES, IGNORE = 8, 512, 21, 255


def drawn(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=generator)


def pairs() -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By what is counted: ours, and torchmetrics'."""
    generator = torch.Generator().manual_seed(0)
    labels, predictions = drawn(generator, CLASSES, TEST), drawn(generator, CLASSES, TEST)
    truth, given = (drawn(generator, PIXEL_CLASSES, MASKS, SIDE, SIDE) for _ in range(2))
    truth[drawn(generator, 20, MASKS, SIDE, SIDE) == 0] = IGNORE
    bank = Features(torch.randn(BANK, WIDTH, generator=generator), drawn(generator, CLASSES, BANK), torch.arange(BANK))
    queries, wanted = torch.randn(QUERIES, WIDTH, generator=generator), labels[:QUERIES]
    inverse = inverse_norms(bank.x)

    def by_torchmetrics() -> Tensor:
        cosines, relevant = unit(queries) @ unit(bank.x).T, wanted[:, None] == bank.labels
        return torch.stack([torch.stack([retrieval_average_precision(row, right),
                                         *(retrieval_hit_rate(row, right, k) for k in (1, 5, 10))])
                            for row, right in zip(cosines, relevant, strict=True)]).double()

    return {
        "accuracy, 10,000 images": (
            lambda: (predictions == labels).double().mean(),
            lambda: classification.multiclass_accuracy(predictions, labels, CLASSES, average="micro").double()),
        "confusion, 10,000 images": (
            lambda: confusion(predictions, labels, CLASSES),
            lambda: classification.multiclass_confusion_matrix(predictions, labels, CLASSES)),
        "confusion, 8 masks": (
            lambda: confusion(given, truth, PIXEL_CLASSES),
            lambda: classification.multiclass_confusion_matrix(given, truth, PIXEL_CLASSES, ignore_index=IGNORE)),
        "IoU, 8 masks": (
            lambda: mean_iou(confusion(given, truth, PIXEL_CLASSES)).classes,
            lambda: classification.multiclass_jaccard_index(given, truth, PIXEL_CLASSES, average="none",
                                                            ignore_index=IGNORE).double()),
        "map and recall, 50 queries": (lambda: judge(queries, wanted, bank, inverse, None), by_torchmetrics)}


def seconds(work: Callable[[], Tensor]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    figures = {}
    for name, (ours, theirs) in pairs().items():
        apart = (ours().double() - theirs().double()).abs().max().item()
        times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        own, other = (statistics.median(column) for column in zip(*times, strict=True))
        figures[name] = {"ours, ms": round(1e3 * own, 3), "torchmetrics, ms": round(1e3 * other, 3),
                         "ratio": round(other / own, 2), "largest difference": apart}
        print(name, figures[name])
    if rounds >= 5:
        record("torchmetrics_cost", figures)


if __name__ == "__main__":
    main()
