"""corruptions: how much accuracy survives noise, blur, weather and digital damage."""

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity
from ssl_zoo.evaluation.robustness import robustness


class Corruptions(Protocol):
    """Accuracy on corrupted test images, as in ImageNet-C, of a linear layer that has learnt from clean features.

    Every test image is encoded anew in 14 kinds of corruption at 5 severities each.
    """

    name = "corruptions"
    quantities = {"corruptions/": Quantity(
        "the linear layer of linear_lbfgs, of clean features, on test images with ImageNet-C's noise, blur, weather "
        "and digital corruptions (without frost; lengths in proportion to the side), mean of 5 severities; mean: of "
        "the 14 kinds; relative: mean over clean")}
    quick = False

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return robustness(self.name, train, test, context)
