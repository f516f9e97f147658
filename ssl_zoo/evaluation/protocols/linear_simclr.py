"""linear_simclr: SimCLR's linear evaluation, on augmented images."""

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.augmented import LINEAR, on_images
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class LinearSimclr(Protocol):
    """Accuracy of a linear layer that is trained on views of the images, with the encoder frozen."""

    name = "linear_simclr"
    quantities = {"linear_simclr": Quantity(
        "a linear layer on random resized crops and flips, SGD with Nesterov momentum "
        "0.9, lr 0.1, batch 256, 90 epochs (or as many as the name says), cosine")} | OF_UNBALANCED
    quick = False

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return on_images(LINEAR, context)
