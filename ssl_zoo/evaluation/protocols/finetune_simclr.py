"""finetune_simclr: SimCLR's fine-tuning, on augmented images."""

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.augmented import FINETUNE, on_images
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class FinetuneSimclr(Protocol):
    """Accuracy after all weights are trained on views of the images, on a copy of the encoder."""

    name = "finetune_simclr"
    quantities = {"finetune_simclr": Quantity(
        "all weights and a linear layer on random resized crops and flips, SGD with Nesterov "
        "momentum 0.9, lr 0.05, batch 256, 30 epochs (or as many as the name says), cosine")} | OF_UNBALANCED
    quick = False

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return on_images(FINETUNE, context)
