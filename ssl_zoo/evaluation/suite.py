"""The evaluation suite: an encoder's features are taken once, every protocol reads them, and one folder tells all."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

import ssl_zoo
from ssl_zoo.data.images import Images, some
from ssl_zoo.data.segmentation import Segmentation, common_size, read_segmentation, splits
from ssl_zoo.data.sources import Files, Loader, Resident
from ssl_zoo.encoders import Encoder, check_size
from ssl_zoo.evaluation import augmented, charts, summary
from ssl_zoo.evaluation.cache import cached, check_finite, extract
from ssl_zoo.evaluation.classifiers import Linear, logistic, naive_bayes, nearest_class_mean
from ssl_zoo.evaluation.dense import dense_iou, encode_maps, pixel_logits, train_dense_head
from ssl_zoo.evaluation.episodes import fewshot
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.grid import linear_grid
from ssl_zoo.evaluation.health import EDGES, alignment, feature_std, rankme, similarities, tolerance, uniformity
from ssl_zoo.evaluation.knn import PROTOCOLS as KNN_PROTOCOLS
from ssl_zoo.evaluation.knn import knn
from ssl_zoo.evaluation.linear import LinearProbe
from ssl_zoo.evaluation.lowshot import lowshot
from ssl_zoo.evaluation.neighbours import find_neighbours, neighbour_sheet
from ssl_zoo.evaluation.retrieval import QUERIES, retrieval
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.export import fingerprint
from ssl_zoo.views import Augmentation, ViewSpec
from ssl_zoo.views.specs import PRESETS
from ssl_zoo.views.tables import Key

HEALTH, PAIRS = 25_000, 2_048   # images, and images of which two views are drawn
BATCH = 256


class Found(NamedTuple):
    """What is known of one encoder."""

    about: dict[str, Any]                # the encoder and how many images it was measured on
    scores: dict[str, Score]
    left_out: list[str]                  # sentences: what could not be measured, and why
    pictures: dict[str, Any]             # by name, each with a `save`
    notes: dict[str, Any]                # what else the report says of a protocol


class Measured(NamedTuple):
    """What an evaluation found."""

    found: dict[str, Found]              # by the encoder's name
    failed: dict[str, str]               # why the other encoders were not measured
    unwritten: str                       # why the report is not in its folder; empty where it is


class Subject(NamedTuple):
    """What a protocol sees of an encoder."""

    encoder: Encoder
    data: Images
    train: Features
    test: Features                       # the training part where there is no other
    views: Callable[[], list[Features]]  # of two views each of some training images
    size: int                            # side of the plain images, pixels
    name: str
    epochs: int | None                   # of the protocols that train on images; None for their own


class Dense(NamedTuple):
    """Images with masks, for linear_dense."""

    train: Segmentation
    test: Segmentation
    notes: dict[str, Any]                # where they are from


def evaluate(encoders: Mapping[str, Encoder], data: Images, folder: Path, *, protocols: Sequence[str],
             features: Path | None = None, dense: Path | None = None, epochs: int | None = None,
             half: bool = False) -> Measured:
    """Measure encoders on one data set; report.json, report.md and pictures are left in `folder`.

    The report is written after each encoder, so that nothing measured is lost with a later one.

    Args:
        encoders: by the name that each has in the report, on the device that is to measure it.
        data: set up; where it has no labels or no test part, health alone is measured.
        protocols: names in PROTOCOLS.
        features: folder that keeps the features for other calls; one in `folder` where left out.
        dense: folder in Pascal VOC's layout, for linear_dense.
        epochs: of linear_simclr and finetune_simclr, whose names then say so.
        half: keep the features in float16.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"the report goes into a folder, and {there} is a file: name another")
    masks = read_dense(dense) if dense is not None else None
    folder.mkdir(parents=True, exist_ok=True)        # what cannot be, is said before hours of work
    parts = data.val_dataloader()
    about = {"class": type(data).__name__, "classes": data.classes,
             "fingerprints": [part.source.fingerprint() for part in parts]}
    known, pictures = Measured({}, {}, ""), []
    for name, encoder in encoders.items():
        try:
            subject, found = prepare(name, encoder, data, parts, about["fingerprints"], features or folder / "features",
                                     epochs, half)
            measure(subject, protocols, masks, found)
        except ValueError as error:                  # about this encoder: the others are measured all the same
            known.failed[name] = str(error)
            continue
        known.found[name] = found
        try:
            pictures += [save(folder, name if len(encoders) > 1 else "", kind, picture)
                         for kind, picture in found.pictures.items()]
            write(folder, about, known, pictures)
            known = known._replace(unwritten="")
        except OSError as error:
            known = known._replace(unwritten=f"the report could not be written to {folder} ({error}): make room there; "
                                             "a second call reuses the features that are there")
    if not known.found:
        raise ValueError("; ".join(known.failed.values()))
    return known


def prepare(name: str, encoder: Encoder, data: Images, parts: Sequence[Loader], fingerprints: Sequence[str],
            folder: Path, epochs: int | None, half: bool) -> tuple[Subject, Found]:
    """The features of all parts, from the folder where they are there, and what is to be said of them."""
    size = parts[0].source.size
    check_size(encoder, size)
    weights, kind = fingerprint(encoder), f"{ssl_zoo.__version__}{'_half' * half}.safetensors"
    found = Found({"fingerprint": weights, "features": encoder.dim, "images": {}}, {}, [], {}, {})

    def taken(batches: Any, images: str, places: Sequence[str]) -> Features:
        features = cached(folder / f"{weights}_{images}_{kind}", partial(extract, encoder, batches, half))
        check_finite(features, places)
        return Features(*(column.to(encoder.mean.device) for column in features))

    features = []
    for part, which, images in zip(parts, ("training", "test"), fingerprints, strict=False):
        bar = tqdm(part, f"{name}: features", unit="batch", file=sys.stderr, disable=None)
        known = names(part, which)
        features.append(taken(bar, f"{images}_plain", known))
        found.about["images"][which] = len(features[-1].x)
        if missing := sorted(set(range(len(known))) - set(features[-1].places.tolist())):
            found.left_out.append(f"{len(missing)} of {len(known)} {which} images, which could not be read, such as "
                                  f"{known[missing[0]]}; where they can be by now, delete {folder}")

    def views() -> list[Features]:
        known = names(parts[0], "training")
        return [taken(view_batches(parts[0].source, size, i), f"{fingerprints[0]}_view_{i}", known) for i in (0, 1)]

    train, test = features[0], features[-1]
    return Subject(encoder, data, train, test, views, size, name, epochs), found


def names(part: Loader, which: str) -> Sequence[str]:
    if isinstance(part.source, Files):
        return part.source.names
    return [f"image {i} of the {which} part" for i in range(len(part.source))]


def view_batches(source: Resident | Files, size: int, which: int) -> Any:
    """Batches of one of SimCLR's two views of some images, always the same."""
    row, = PRESETS["simclr" if size > 64 else "simclr_32"]
    augment = Augmentation([ViewSpec(**vars(row) | {"size": size})])
    for batch, places in enumerate(torch.from_numpy(some(len(source), PAIRS)).split(BATCH)):
        kept, images = [], []
        for place in places.tolist():
            try:
                images.append(source.read(place))
            except Exception:            # whatever a decoder raises on a damaged file, which the loader has named
                continue
            kept.append(place)
        if images:
            key = Key(0, 0, batch, 0)
            view = augment(augment.cut(images, key), key)[which].images
            yield view, source.labels[kept], torch.tensor(kept)


# Protocols

def from_knn(s: Subject, found: Found) -> None:
    found.scores.update(knn(s.train, s.test, KNN_PROTOCOLS))
    found.left_out.extend(f"{name} has {len(s.train.x)} neighbours, all training images, instead of {protocol.k}"
                          for name, protocol in KNN_PROTOCOLS.items() if protocol.k > len(s.train.x))
    found.pictures["neighbours"] = neighbour_sheet(
        find_neighbours(s.train, s.test, 10), lambda part, place: s.data.val_dataloader()[part].image(place),
        s.data.classes)


def from_grid(s: Subject, found: Found) -> None:
    grid = linear_grid(s.train, s.test)
    found.scores["linear_grid"] = grid.score
    found.notes["linear_grid"] = {"chosen": grid.cell._asdict(), "held_out": [
        {**cell._asdict(), "cross_entropy": summary.finite(loss), "accuracy": grid.validation[cell]}
        for cell, loss in grid.losses.items()]}
    found.pictures["confusion"] = charts.confusion_matrix(s.test.labels, grid.predictions, s.data.classes,
                                                          f"{s.name}: linear_grid")


def from_cached(s: Subject, found: Found) -> None:
    probe = LinearProbe()
    found.scores[probe.protocol] = probe.score(s.train, s.test)


def closed(fit: Callable[[Tensor, Tensor, int], Linear], name: str) -> Callable[[Subject, Found], None]:
    def protocol(s: Subject, found: Found) -> None:
        classes = int(torch.maximum(s.train.labels.max(), s.test.labels.max())) + 1
        predictions = fit(s.train.x, s.train.labels, classes).predict(s.test.x)
        found.scores[name] = Score((predictions == s.test.labels).double(), "image")

    return protocol


def from_low_shot(s: Subject, found: Found) -> None:
    scores, left_out = lowshot(s.train, s.test, s.data.classes)
    found.scores.update(scores)
    found.left_out.extend(left_out)


def from_few_shot(s: Subject, found: Found) -> None:
    scores, left_out = fewshot(s.test)
    found.scores.update(scores)
    found.left_out.extend(left_out)


def from_retrieval(s: Subject, found: Found) -> None:
    found.scores.update(retrieval(s.train, s.test))
    asked, answered = min(len(s.test.x), QUERIES), len(found.scores["retrieval/map"].units)
    if answered < asked:
        found.left_out.append(f"retrieval: {asked - answered} of {asked} queries, of whose class the training part has "
                              "no image")


def from_health(s: Subject, found: Found) -> None:
    chosen = torch.from_numpy(some(len(s.train.x), HEALTH)).to(s.train.x.device)
    x, labels = s.train.x[chosen], s.train.labels[chosen]
    found.scores.update({"health/width": number(x.shape[1]), "health/feature_std": number(feature_std(x)),
                         "health/rankme": number(rankme(x)), "health/uniformity": number(uniformity(x))})
    if (labels >= 0).all():
        joint, conditional = tolerance(x, labels)
        found.scores.update({"health/tolerance": number(conditional), "health/tolerance_joint": number(joint)})
    one, two = (view.x.float() for view in s.views())
    pairs = similarities(one, two)
    found.scores["health/alignment"] = number(alignment(one, two))
    for name, cosines in zip(("positive", "negative"), pairs, strict=True):
        found.scores[f"health/{name}_mean"] = number(cosines.mean)
        found.scores[f"health/{name}_variance"] = number(cosines.variance)
    positives, negatives = (side.counts.cpu() for side in pairs)
    found.pictures["similarities"] = charts.similarity_histogram(positives, negatives, EDGES,
                                                                 f"{s.name}: cosine of the features of two views")


def on_images(protocol: Any, recipe: augmented.Recipe) -> Callable[[Subject, Found], None]:
    def run(s: Subject, found: Found) -> None:
        source = s.data.train
        if isinstance(source, Files):
            source.augment = augmented.crop_and_flip(s.size)
        batch = min(BATCH, len(source))              # and with it the learning rate
        trained = protocol(s.encoder, Loader(source, batch, s.data.workers, training=True),
                           s.data.val_dataloader()[1], len(s.data.classes), s.size, epochs=s.epochs or recipe.epochs)
        found.scores[trained.name] = trained.score
        found.notes[trained.name] = {"batch": batch, "size": s.size, "epochs": s.epochs or recipe.epochs}

    return run


PROTOCOLS: dict[str, Callable[[Subject, Found], None]] = {
    "knn": from_knn, "linear_cached": from_cached, "linear_grid": from_grid, "logistic": closed(logistic, "logistic"),
    "naive_bayes": closed(naive_bayes, "naive_bayes"),
    "nearest_class_mean": closed(nearest_class_mean, "nearest_class_mean"), "lowshot": from_low_shot,
    "fewshot": from_few_shot, "retrieval": from_retrieval, "health": from_health,
    "linear_simclr": on_images(augmented.linear_simclr, augmented.LINEAR),
    "finetune_simclr": on_images(augmented.finetune_simclr, augmented.FINETUNE)}
QUICK = tuple(PROTOCOLS)[:-2]   # the others train on images: minutes to hours each, so only where asked


def measure(s: Subject, protocols: Sequence[str], dense: Dense | None, found: Found) -> None:
    why = no_accuracy(s)
    if why and (missing := [name for name in protocols if name != "health"]):
        found.left_out.append(f"{', '.join(missing)}: {why}")
    for name in tqdm([name for name in protocols if not why or name == "health"], s.name, unit="protocol",
                     file=sys.stderr, disable=None):
        try:                             # knn converts half precision piece by piece
            PROTOCOLS[name](s if name == "knn" else s._replace(train=single(s.train), test=single(s.test)), found)
        except (ValueError, RuntimeError) as error:      # what the other protocols found is kept
            found.left_out.append(f"{name}: {error}")
    found.pictures["feature_map"] = charts.feature_map(s.test.x, s.test.labels, s.data.classes, s.name)
    if dense is not None:
        try:
            measure_dense(s, dense, found)
        except (ValueError, RuntimeError) as error:
            found.left_out.append(f"linear_dense: {error}")


def single(features: Features) -> Features:
    return features._replace(x=features.x.float())


def no_accuracy(s: Subject) -> str:
    """Why no accuracy can be measured, or nothing."""
    if s.test is s.train:
        return ("accuracy needs labels and a part to test on: put the images of each class into a sub-folder of their "
                "own")
    if min(s.train.labels.min(), s.test.labels.min()) < 0:
        return "some images have no label: give every image of both parts one"
    if len(s.train.labels.unique()) < 2:
        return f"all training images are of one class, {s.data.classes[int(s.train.labels[0])]}: give it another"
    return ""


def read_dense(root: Path) -> Dense:
    size, names = common_size(root), splits(root)
    train, test = (read_segmentation(root, split, size) for split in names)
    return Dense(train, test, {"folder": str(root), "train": names[0], "test": names[1], "size": size})


def measure_dense(s: Subject, dense: Dense, found: Found) -> None:
    """linear_dense: mean IoU, that of each class, and a picture of the first masks."""
    train, test = dense.train, dense.test
    head = train_dense_head(encode_maps(s.encoder, train.images), train.masks, len(train.classes))
    maps = encode_maps(s.encoder, test.images)
    iou = dense_iou(head, maps, test.masks, len(test.classes))
    found.scores["linear_dense"] = number(iou.mean)
    found.scores.update({f"linear_dense/{name}": number(value)
                         for name, value in zip(test.classes, iou.classes.tolist(), strict=True)})
    found.notes["linear_dense"] = {**dense.notes, "map": list(maps.shape[2:])}
    chosen = torch.from_numpy(some(len(maps), 6))
    with torch.no_grad():
        predictions = pixel_logits(head, maps[chosen], test.masks[chosen]).argmax(1)
    found.pictures["masks"] = charts.mask_sheet(test.images[chosen], test.masks[chosen], predictions, test.classes,
                                                f"{s.name}: linear_dense")


# The report

def write(folder: Path, about: dict[str, Any], known: Measured, pictures: Sequence[Path]) -> None:
    """report.json, report.md and the learning curves of all encoders together."""
    scores = {name: one.scores for name, one in known.found.items()}
    protocols = summary.describe(list(dict.fromkeys(name for one in scores.values() for name in one)))
    images = next(iter(known.found.values())).about["images"]
    if any(name.startswith("lowshot/") for one in scores.values() for name in one):
        curves = charts.learning_curves(scores, "accuracy from few labels")
        pictures = [*pictures, save(folder, "", "learning_curves", curves)]
    left_out = [f"{name}: {said}" for name, one in known.found.items() for said in one.left_out]
    left_out += [f"{name} was not measured: {said}" for name, said in known.failed.items()]
    put(folder / "report.json", json.dumps({
        "data": about | {"images": images},
        "encoders": {name: {**one.about, "scores": summary.plain(one.scores), "notes": one.notes}
                     for name, one in known.found.items()},
        "differences": summary.differences(scores),
        "left_out": left_out, "protocols": protocols,
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__}}, indent=2) + "\n")
    put(folder / "report.md", "\n".join([
        f"# Evaluation on {' and '.join(f'{count:,} {which}' for which, count in images.items())} images\n",
        summary.as_markdown(summary.rows(scores)),
        summary.LEGEND, *(["\n## Left out\n", *(f"- {said}" for said in left_out)] if left_out else []),
        "\n## Protocols\n", *(f"- `{name}`: {text}" for name, text in protocols.items()),
        "\n## Pictures\n", *(f"![{path.stem}]({path.name})" for path in pictures)]) + "\n")


def put(path: Path, text: str) -> None:
    """A file that is there is whole."""
    half = path.with_suffix(".half")
    half.write_text(text)
    half.replace(path)


def save(folder: Path, encoder: str, kind: str, picture: Any) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", encoder)
    path = folder / (f"{slug}_{kind}.png" if slug else f"{kind}.png")
    (picture if hasattr(picture, "save") else charts.picture(picture)).save(path)
    return path
