"""retrieval: do images of one class find each other?"""

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity
from ssl_zoo.evaluation.retrieval import QUERIES, retrieval


class Retrieval(Protocol):
    """Mean average precision and recall of the training images, ranked by their cosine to each of some test images."""

    name = "retrieval"
    quantities = {
        "retrieval/map": Quantity("mean average precision of at most 1,000 test images as queries among the training "
                                  "images, those without an image of their class left out"),
        "retrieval/recall": Quantity("share of these queries with an image of their class among the nearest 1, 5 "
                                     "or 10")}

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        scores = retrieval(train, test)
        asked, answered = min(len(test.x), QUERIES), len(scores["retrieval/map"].units)
        if answered == asked:
            return Measured(scores)
        return Measured(scores, left_out=[f"retrieval: {asked - answered} of {asked} queries, of whose class the "
                                          "training part has no image"])
