"""A picture of some images beside their nearest training images."""

from functools import partial

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.neighbours import find_neighbours, neighbour_sheet
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol


class Neighbours(Protocol):
    """A picture: some test images, each with its 8 nearest training images by the cosine.

    Neighbours of another class are marked. Without labels or a test part, the queries are training images.

    Args:
        queries: how many images to look up, the same ones every time.
    """

    name = "neighbours"
    quantities = {}
    needs_labels = False

    def __init__(self, queries: int = 10):
        self.queries = queries

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        found = find_neighbours(train, test, self.queries)
        if context.image is None:
            return Measured({}, left_out=["neighbours: these features come without their images"])
        return Measured({}, {"neighbours": partial(neighbour_sheet, found, context.image, context.classes,
                                                   f"{context.name}: " * bool(context.name))})
