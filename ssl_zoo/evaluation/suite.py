"""Encoders measured on one data set: features are taken once, every protocol reads them, one folder has the results.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

import ssl_zoo
from ssl_zoo.data.sources import Files, Loader, Resident
from ssl_zoo.distributed import Key
from ssl_zoo.encoders import Encoder, check_size
from ssl_zoo.evaluation import charts, report
from ssl_zoo.evaluation.accuracy import guess
from ssl_zoo.evaluation.cache import cached, extract
from ssl_zoo.evaluation.features import Features, no_accuracy, require_finite
from ssl_zoo.evaluation.protocol import Context, Protocol
from ssl_zoo.evaluation.protocols import find, names
from ssl_zoo.evaluation.protocols.linear_dense import LinearDense
from ssl_zoo.evaluation.report import Column, Comparison
from ssl_zoo.evaluation.seeds import Origin, groups
from ssl_zoo.export import fingerprint
from ssl_zoo.finite import require_finite as require_finite_weights
from ssl_zoo.provenance import of_encoder, provenance
from ssl_zoo.views import Augmentation, ViewSpec
from ssl_zoo.views.specs import PRESETS

if TYPE_CHECKING:
    from ssl_zoo.data.images import Images

PAIRS = 2048   # images of which two views are drawn, for health
BATCH = 256


def evaluate(encoders: Mapping[str, Encoder], data: "Images", folder: Path, *,
             protocols: Sequence[str | Protocol] | None = None, features: Path | None = None, dense: Path | None = None,
             epochs: int | None = None, half: bool = False, origins: Mapping[str, Origin] | None = None,
             seeds: Mapping[str, Sequence[str]] | None = None) -> Comparison:
    """Measure encoders on one data set; leave report.json, report.md and pictures in `folder`, after each encoder anew.

    Args:
        encoders: by the name that each has in the report, on the device that is to measure it.
        data: set up; where it has no labels or no test part, what needs them is left out, and said.
        protocols: names in ssl_zoo/evaluation/protocols, class paths or objects; the quick ones where left out.
        features: folder that keeps the features for other calls; one in `folder` where left out.
        dense: folder in Pascal VOC's layout, for linear_dense.
        epochs: of linear_simclr, finetune_simclr and finetune, whose scores then say so.
        half: keep the features in float16.
        origins: where they come from: seeds of one recipe share a column, untrained ones are the others' yardstick.
        seeds: the encoders of each recipe by its name, found by their origins where left out.
    """
    chosen = choose(protocols, dense)
    make(folder)                                     # what is impossible is said before hours of work
    taken = Source(data, data.val_dataloader(), features or folder / "features", half)
    about = {"class": type(data).__name__, "classes": data.classes, "fingerprints": taken.fingerprints,
             "understood": data.summary.splitlines()}
    known, pictures, made = nothing_yet(chosen, origins or {}, seeds), [], provenance(data=data)
    for name, encoder in encoders.items():
        try:
            column = known.columns[name] = measure(name, encoder, taken, chosen, epochs, whence(origins, name))
        except ValueError as error:                  # about this encoder: the others are measured all the same
            known.failed[name] = str(error)
            continue
        try:
            pictures += [report.save(folder, name if len(encoders) > 1 else "", kind, draw())
                         for kind, draw in column.pictures.items()]
            report.write(folder, about, known, pictures, made)
            known = known._replace(unwritten="")
        except OSError as error:
            known = known._replace(unwritten=f"the report could not be written to {folder} ({error}): make room there; "
                                             "a second call reuses the features that are there")
    if not known.columns:
        raise ValueError("; ".join(known.failed.values()))
    return known


def nothing_yet(chosen: Sequence[Protocol], origins: Mapping[str, Origin], known: Mapping[str, Sequence[str]] | None
                ) -> Comparison:
    """What is known before the first encoder is measured."""
    seeds, said = groups(origins) if known is None else (known, [])
    untrained = [name for name, origin in origins.items() if origin.untrained]
    return Comparison(chosen, {}, {}, seeds=seeds, untrained=untrained, said=said)


def whence(origins: Mapping[str, Origin] | None, name: str) -> dict[str, Any]:
    """The file of an encoder, and the provenance that this says it has."""
    if not origins or name not in origins or origins[name].untrained:
        return {"path": None}
    path = origins[name].path
    return {"path": str(path), "provenance": of_encoder(path)}


def make(folder: Path) -> None:
    require_place(folder)
    folder.mkdir(parents=True, exist_ok=True)


def require_place(folder: Path) -> None:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"the report goes into a folder, and {there} is a file: name another")


def choose(protocols: Sequence[str | Protocol] | None, dense: Path | None) -> list[Protocol]:
    """The protocols to measure; a folder of masks asks for linear_dense."""
    if protocols is None:
        chosen = [found for found in map(find, names()) if found.quick and found.unasked]
    else:
        chosen = [find(one) if isinstance(one, str) else one for one in protocols]
    if dense is not None:
        chosen = [one for one in chosen if not isinstance(one, LinearDense)] + [LinearDense(dense)]
    return chosen


def measure(name: str, encoder: Encoder, source: "Source", protocols: Sequence[Protocol], epochs: int | None,
            origin: Mapping[str, Any]) -> Column:
    """What all protocols find of one encoder; one that cannot be measured leaves a sentence."""
    require_finite_weights(encoder, name, "take an earlier checkpoint of its run")
    source.read_as(encoder)
    check_size(encoder, source.size)
    about = {**origin, "fingerprint": fingerprint(encoder), "features": encoder.dim, "images": {}}
    column = Column(about, {}, [], {}, {})
    parts = source.plain(name, encoder, column)
    context = Context(name, source.data.classes, source.image, encoder=encoder, size=source.size, epochs=epochs,
                      views=partial(source.views, encoder), batches=source.batches, tested=source.parts[-1])
    lacking = no_accuracy([part.labels for part in parts], source.data.classes)
    if lacking and (missing := [protocol.name for protocol in protocols if protocol.needs_labels]):
        column.left_out.append(f"{', '.join(missing)}: accuracy {lacking}")
    for protocol in tqdm([one for one in protocols if not lacking or not one.needs_labels], name, unit="protocol",
                         file=sys.stderr, disable=None):
        given = parts if protocol.takes_half else [part._replace(x=part.x.float()) for part in parts]
        try:
            found = protocol.measure(given[0], given[-1], context)
        except (ValueError, RuntimeError) as error:      # what the other protocols found is kept
            column.left_out.append(f"{protocol.name}: {error}")
            continue
        column.scores.update(found.scores)
        column.pictures.update(found.pictures)
        column.notes.update(found.notes)
        column.left_out.extend(found.left_out)
    test = parts[-1]
    if not lacking:
        column = column._replace(guess=guess(test.labels))
    column.pictures["feature_map"] = lambda: charts.picture(
        charts.feature_map(test.x, test.labels, source.data.classes, name))
    return column


class Source:
    """The images of an evaluation, as the protocols ask for them.

    Args:
        data: set up.
        parts: its plain batches: of the training part, then of the test part if there is one.
        folder: keeps the features.
        half: keep them in float16.
    """

    def __init__(self, data: "Images", parts: Sequence[Loader], folder: Path, half: bool):
        self.data, self.parts, self.folder, self.half = data, parts, folder, half
        self.size = parts[0].source.size
        self.fingerprints = [part.source.fingerprint() for part in parts]
        self.own = data.decoder.preprocessing

    def read_as(self, encoder: Encoder) -> None:
        """Read the images as the encoder's own were; where that is unknown, as the data module says."""
        if self.data.read_as({**self.own, **encoder.preprocessing, "channels": encoder.channels}):
            self.parts = self.data.val_dataloader()
            self.fingerprints = [part.source.fingerprint() for part in self.parts]

    def plain(self, name: str, encoder: Encoder, column: Column) -> list[Features]:
        """The features of each part; the column is told how many, and which images could not be read."""
        features = []
        for part, which, images in zip(self.parts, ("training", "test"), self.fingerprints, strict=False):
            bar = tqdm(part, f"{name}: features", unit="batch", file=sys.stderr, disable=None)
            known = image_names(part.source, which)
            found = self.taken(encoder, bar, f"{images}_plain", known)
            features.append(found)
            column.about["images"][which] = len(found.x)
            if missing := sorted(set(range(len(known))) - set(found.places.tolist())):
                column.left_out.append(
                    f"{len(missing)} of {len(known)} {which} images, which could not be read, such as "
                    f"{known[missing[0]]}{self.why(part.source)}; where they can be by now, delete {self.folder}")
        return features

    def why(self, source: Resident | Files) -> str:
        """The counts of the reasons, unless all features were in the folder."""
        kinds = source.left_out.kinds if isinstance(source, Files) else ""
        return f" ({kinds} in all)" * bool(kinds)

    def views(self, encoder: Encoder) -> list[Features]:
        """The features of two views each of some training images."""
        source = self.parts[0].source
        known = image_names(source, "training")
        return [self.taken(encoder, view_batches(source, self.size, i), f"{self.fingerprints[0]}_view_{i}", known)
                for i in (0, 1)]

    def taken(self, encoder: Encoder, batches: Any, images: str, known: Sequence[str]) -> Features:
        """The features of the batches, from the folder if they are there."""
        kind = f"{ssl_zoo.__version__}{'_half' * self.half}.safetensors"
        features = cached(self.folder / f"{fingerprint(encoder)}_{images}_{kind}",
                          partial(extract, encoder, batches, self.half), dim=encoder.dim, images=len(known))
        require_finite(features.x, names=[known[place] for place in features.places.tolist()])
        return Features(*(column.to(encoder.mean.device) for column in features))

    def image(self, part: int, place: int) -> Tensor:
        return self.parts[part].image(place)

    def batches(self, augment: Augmentation, places: Tensor | None = None) -> tuple[Loader, Loader]:
        """Batches of the training part, from which the augmentation draws views, and plain ones of the test part.

        Args:
            places: of the images to train on, all where left out. An epoch leaves out as few of them as can be.
        """
        source = self.parts[0].source                # with labels, which not every training image need have
        size = min(BATCH, len(source))               # and with it the learning rate
        if places is not None:
            source = source.subset(places.cpu().numpy())
            size = len(source) // -(-len(source) // BATCH)
        if isinstance(source, Files):
            source.augment, source.scaled = augment, False   # a protocol sees the pixels as they are
        return Loader(source, size, self.data.workers, training=True), self.parts[-1]


def image_names(source: Resident | Files, which: str) -> Sequence[str]:
    if isinstance(source, Files):
        return source.names
    return [f"image {i} of the {which} part" for i in range(len(source))]


def view_batches(source: Resident | Files, size: int, which: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of one of SimCLR's two views of some images, the same ones every time."""
    row, = PRESETS["simclr" if size > 64 else "simclr_32"]
    augment = Augmentation([ViewSpec(**vars(row) | {"size": size})])
    for batch, places in enumerate(torch.from_numpy(source.some(PAIRS)).split(BATCH)):
        kept, images = [], []
        for place in places.tolist():
            if isinstance(image := source.attempt(place), Tensor):   # the loader has named the others
                images.append(image)
                kept.append(place)
        if images:
            key = Key(0, 0, batch, 0)
            view = augment(augment.cut(images, key), key)[which].images
            yield view[:, :len(images[0])], source.labels[kept], torch.tensor(kept)
