import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssl_zoo import distributed
from ssl_zoo.data.counting import find, holds_shards, index_of
from ssl_zoo.data.decoding import MAX_PIXELS
from ssl_zoo.data.fetching import Scratch, is_address
from ssl_zoo.data.folder import ImageFolder, check_held_out, hold_out
from ssl_zoo.data.images import Images, OfFiles
from ssl_zoo.data.labels import as_places
from ssl_zoo.data.levels import Choice
from ssl_zoo.data.shard_index import Index, words_of
from ssl_zoo.data.sources import Loader
from ssl_zoo.data.streams import Shards
from ssl_zoo.data.summary import Understood


class ImageShards(OfFiles):
    """Images in the tar files of WebDataset, called shards, for sets that are too large for files of their own.

    Each process reads its own share of the shards, in a new order in every epoch, and shuffles a block of them at a
    time. All have equally many batches, each image is in one share, and a resumed run goes on with the next batch:
    nothing is repeated, nothing skipped. Shards that are no local files (addresses, and packed ones) are fetched whole,
    two blocks at most, into a folder below TMPDIR.

    Args:
        root: folder of shards, which may have sub-folders train and val (or test) or shards with these words in their
            names; or an index (.json); or shards, with braces for many, as in train-{0000..0999}.tar. Index and shards
            may be any address that webdataset opens, and "pipe:" a command. `ssl-zoo shard` writes shards and indexes.
        batch_size: images in a training batch of each process.
        test: shards or an index to test on, in place of those found in root.
        evaluation: folder of images, or of shards, whose two parts are evaluated in place of these: for a training part
            that is too large to be encoded, or has no labels.
        held_out: share of each class to test on, if there is no test part and the shards are local.
        evaluation_size: side in pixels of the images that evaluation sees.
        train_images: use only this many training images, the same ones in every run; null uses all.
        workers: processes on each device that decode files.
        strict: refuse unreadable images and torn shards instead of skipping what is missing.
        block: shards of a process that are shuffled together.
        image: what images are called behind the first dot of their name, such as jpg, where a sample has several.
        labelled: whether to read labels, from a member cls (or label, class, target) of an image's key, or from such a
            field of its .json. Images without one are trained on and not evaluated.
        channels: of the images: 3 for colours (gray is repeated), 1 for gray, any other number for files with just
            these channels.
        levels: the two values that become black and white in files of more than 8 bits, as for ImageFolder.
        background: the colour behind transparent pixels.
        max_pixels: larger pictures are decoded at a reduced scale if they can be, and left out otherwise.
    """

    train: Shards
    test: Shards | None

    def __init__(self, root: str | list[str], batch_size: int = 256, test: str | list[str] | None = None,
                 evaluation: str | None = None, held_out: float = 0.1, evaluation_size: int = 224,
                 train_images: int | None = None, workers: int = 2, strict: bool = False, block: int = 16,
                 image: str | None = None, labelled: bool = True, channels: int = 3, levels: Choice = "file",
                 background: str = "white", max_pixels: int = MAX_PIXELS):
        super().__init__(batch_size, train_images, workers, strict)
        self.decode_by(levels, channels, background=background, max_pixels=max_pixels)
        check_held_out(held_out)
        if block < 1:
            raise ValueError(f"block is at least 1 shard, not {block}")
        self.root, self.test_root, self.evaluation, self.held_out = root, test, evaluation, held_out
        self.evaluation_size, self.block, self.image, self.with_labels = evaluation_size, block, image, labelled
        self.scratch: Scratch | None = None
        self.pair: Images | None = None   # whose parts are evaluated

    def load(self) -> tuple[Shards, Shards | None, list[str]]:
        scratch = self.scratch = self.scratch or Scratch()
        train, test, test_name = find(self.root, scratch, self.image, self.workers)
        if self.test_root is not None:
            test, test_name = index_of(self.test_root, scratch, self.image, self.workers), said(self.test_root)
        left_out = [*train.left_out, *([] if test is None else test.left_out)]
        if self.strict and (torn := [one for one in left_out if one.startswith("the rest of ")]):
            raise ValueError(f"{torn[0]}: write or copy the shard again, or set strict to false to train without it")
        labels, classes = places_of(train, test) if self.with_labels else ([None, None], [])
        notes = [f"{len(train.shards):,} shards"]
        parts = [None if part is None else Shards(part.shards, label, self.evaluation_size, self.block, scratch,
                                                  self.image, self.decoder, self.left_out)
                 for part, label in zip((train, test), labels, strict=True)]
        assert parts[0] is not None
        self.understood = Understood(said(self.root), test_name, notes, left_out)
        return *self.with_test(parts[0], parts[1]), classes

    def with_test(self, train: Shards, test: Shards | None) -> tuple[Shards, Shards | None]:
        """Hold out a share of each class where there are classes and no test part."""
        if test is not None or self.evaluation is not None or not bool((train.labels >= 0).any()):
            return train, test
        if train.remote:
            self.understood = self.understood._replace(notes=[*self.understood.notes, "nothing held out of shards that "
                                                              "are fetched, so give test or evaluation for accuracies"])
            return train, None
        kept, tested = hold_out(train.labels.numpy(), self.held_out)
        self.understood = self.understood._replace(test=f"held out, {100 * self.held_out:g} % of each class")
        return (train.subset(kept), train.subset(tested)) if len(tested) else (train, None)

    def setup(self, stage: str) -> None:
        fresh = not self.loaded
        super().setup(stage)
        if fresh and self.evaluation is not None:
            self.pair = self.evaluated_images(self.evaluation)
            self.pair.decoder, self.pair.levels, self.pair.said = self.decoder, self.levels, self.said
            self.pair.setup("validate")
            self.classes = self.pair.classes

    def evaluated_images(self, root: str) -> Images:
        folder = Path(root).expanduser()
        in_shards = is_address(root) or root.endswith(".json") or folder.is_dir() and any(
            one.is_dir() and holds_shards(one) for one in (folder, *folder.iterdir()))
        kind = ImageShards if in_shards else ImageFolder
        options = {"evaluation_size": self.evaluation_size, "workers": self.workers, "strict": self.strict}
        return kind(root, **options, channels=self.decoder.channels, levels=self.levels,   # type: ignore[arg-type]
                    background=self.decoder.background, max_pixels=self.decoder.max_pixels)

    @property
    def labelled(self) -> bool:
        return super().labelled if self.pair is None else self.pair.labelled

    def require_batches(self) -> None:
        """Refuse processes that see other shards than each other: they would wait for each other's batches."""
        super().require_batches()
        device = self.trainer.strategy.root_device   # type: ignore[union-attr]
        state = zlib.crc32(repr([(Path(shard.name).name, shard.images) for shard in self.train.shards]).encode())
        seen = distributed.gather(torch.tensor([state, len(self.train)], device=device)[None]).tolist()
        if other := [rank for rank, one in enumerate(seen) if one != seen[0]]:
            raise ValueError(f"process 0 sees {seen[0][1]:,} images in its shards, and process {other[0]} has "
                             f"{seen[other[0]][1]:,} or other shards: give every machine the same ones, or one index")

    def val_dataloader(self) -> list[Loader]:
        return super().val_dataloader() if self.pair is None else self.pair.val_dataloader()


def said(root: str | Sequence[str]) -> str:
    return root if isinstance(root, str) else f"{root[0]} and {len(root) - 1} more" if len(root) > 1 else root[0]


def places_of(train: Index, test: Index | None) -> tuple[list[torch.Tensor | None], list[str]]:
    """The labels of both parts [N] as places among the classes, -1 where unknown; None for a part without any."""
    both = [train, *([] if test is None else [test])]
    if train.classes and all(index.classes == train.classes for index in both):   # millions: without words
        found = [np.concatenate([np.full(shard.images, -1) if shard.labels is None else np.asarray(shard.labels)
                                 for shard in index.shards]) for index in both]
        return [torch.from_numpy(labels) for labels in found] + [None] * (2 - len(both)), train.classes
    names = next((index.classes for index in both if index.classes), [])   # of a counted part only numbers are known
    words = {name: None if (own := words_of(index.shards, index.classes or names)) is None else np.array(own)
             for name, index in zip(("labels to train on", "labels to test on"), both, strict=False)}
    told = {word for own in words.values() if own is not None for word in np.unique(own).tolist()} - {""}
    labels, classes, _ = as_places(words, names if told <= set(names) else [])
    return [None if own is None else torch.from_numpy(own) for own in labels] + [None] * (2 - len(both)), classes
