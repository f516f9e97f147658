"""What a protocol is: one way to measure an encoder by its features, in a run and outside of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ssl_zoo.encoders import Encoder
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.score import Score

Picture = Callable[[], Image.Image]   # drawn when it is called: of several processes, one draws


class Quantity(NamedTuple):
    """What a number means, and how it is written."""

    sentence: str          # for the README and the reports; to change it is to change what the number means
    percent: bool = True   # a share, written in percent; else a plain number


class Context(NamedTuple):
    """What a protocol may look at beside the features. During a run only the first four are there."""

    name: str = ""                      # of the encoder, for pictures
    classes: Sequence[str] = ()         # names by label; none where the images have no labels
    image: Callable[[int, int], Tensor] | None = None   # part (0 the first, -1 the last) and place -> [3, H, W]
    running: bool = False               # during training, where a measurement must be quick
    encoder: Encoder | None = None
    views: Callable[[], Sequence[Features]] | None = None   # of two of SimCLR's views each of some training images
    batches: Callable[..., tuple[Any, Iterable[Any]]] | None = None   # (augmentation, places of the training part, all
    #                                                                   if left out): to train on and to test on
    tested: Iterable[Any] = ()          # plain batches of the test part
    size: int = 0                       # side of the plain images, pixels
    epochs: int | None = None           # for protocols that train on images, in place of their own


class Measured(NamedTuple):
    """What a protocol found."""

    scores: Mapping[str, Score]
    pictures: Mapping[str, Picture] = {}
    notes: Mapping[str, Any] = {}       # plain values by score, for the report's JSON
    left_out: Sequence[str] = ()        # sentences: what could not be measured, and why


class Protocol(ABC):
    """One way to measure an encoder, under a name of its own. A subclass states what it is and writes `measure`.

    Put its class path into a recipe's `Evaluation`, or after `ssl-zoo evaluate --protocols`; a protocol of the package
    is a file of its name in `ssl_zoo/evaluation/protocols`, and found there by its name.
    """

    name: str
    quantities: Mapping[str, Quantity]   # by the name of a score, or by what the names of several start with
    quick = True            # takes seconds: runs may measure it
    unasked = True          # ssl-zoo evaluate measures it without being told to, if it is quick
    needs_labels = True     # of all images, and a test part
    sharded = False         # `measure` takes this process's share of the images, and finds the same on every process
    takes_half = False      # `measure` takes float16 features as they are; to the others they come in float32
    in_bar = False          # a run shows the scores in its progress bar

    @abstractmethod
    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        """The scores of an encoder, each under a name that `quantities` explains.

        Raise a ValueError where nothing can be measured: what the other protocols find is kept.

        Args:
            train: features of the training part.
            test: features of the test part; the same object as `train` where there is one part.
            context: what else there is to look at.
        """

    def compare(self, columns: Mapping[str, Mapping[str, Score]]) -> Mapping[str, Picture]:
        """Pictures of several encoders together, from all their scores by encoder and name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a run's checkpoint keeps of this protocol."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:   # noqa: B027, for most have no state
        """Take over what `state_dict` returned."""


def quantity(score: str, protocols: Iterable[Protocol]) -> tuple[str, Quantity] | None:
    """What the score of that name is, and the longest key that stands for it; None where no protocol knows it."""
    known = {key: found for protocol in protocols for key, found in protocol.quantities.items()
             if score.startswith(key)}
    return max(known.items(), key=lambda item: len(item[0])) if known else None
