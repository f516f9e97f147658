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
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

import ssl_zoo
from ssl_zoo.data.images import Images, some
from ssl_zoo.data.segmentation import Segmentation, common_size, read_segmentation, splits
from ssl_zoo.data.sources import Files, Loader
from ssl_zoo.encoders import Encoder
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
from ssl_zoo.evaluation.lowshot import lowshot
from ssl_zoo.evaluation.neighbours import find_neighbours, neighbour_sheet
from ssl_zoo.evaluation.retrieval import retrieval
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.export import fingerprint
from ssl_zoo.specs import PRESETS
from ssl_zoo.tables import Key
from ssl_zoo.views import Augmentation, ViewSpec

HEALTH, PAIRS = 25_000, 2_048   # images, and images of which two views are drawn
BATCH = 256


class Found(NamedTuple):
    """What is known of one encoder."""

    scores: dict[str, Score]
    left_out: list[str]                 # sentences: what could not be measured, and why
    pictures: dict[str, Any]            # by name, each with a `save`
    notes: dict[str, Any]               # what else the report says of a protocol


class Subject(NamedTuple):
    """What a protocol sees of an encoder."""

    encoder: Encoder
    data: Images
    train: Features
    test: Features                       # the training part where there is no other
    views: tuple[Features, Features]     # of two views each of some training images
    size: int                            # side of the plain images, pixels
    name: str
    epochs: int | None                   # of the protocols that train on images; None for their own


class Dense(NamedTuple):
    """Images with masks, for linear_dense."""

    train: Segmentation
    test: Segmentation
    notes: dict[str, Any]                # where they are from


def evaluate(encoders: Mapping[str, Encoder], data: Images, folder: Path, *, protocols: Sequence[str],
             dense: Path | None = None, epochs: int | None = None, half: bool = False) -> dict[str, Found]:
    """Measure encoders on one data set; report.json, report.md, pictures and features are left in `folder`.

    The report is written after each encoder, so that nothing measured is lost with a later one.

    Args:
        encoders: by the name that each has in the report, on the device that is to measure it.
        data: set up; where it has no labels or no test part, health alone is measured.
        protocols: names in PROTOCOLS.
        dense: folder in Pascal VOC's layout, for linear_dense.
        epochs: of linear_simclr and finetune_simclr, whose names then say so.
        half: keep the features in float16.
    """
    folder.mkdir(parents=True, exist_ok=True)        # what cannot be, is said before hours of work
    masks = read_dense(dense) if dense is not None else None
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}
    for name, encoder in encoders.items():
        try:
            found[name] = measure(subject(name, encoder, data, folder / "features", epochs, half), protocols, masks)
        except ValueError as error:                  # about this encoder: the others are measured all the same
            failed[name] = str(error)
            rank_zero_warn(f"{name} was not measured: {error}")
        if found:
            try:
                write(folder, data, encoders, found, failed)
            except OSError as error:
                rank_zero_warn(f"the report could not be written to {folder} ({error}): make room there; a second call "
                               "reuses the features that are there")
    if not found:
        raise ValueError("; ".join(failed.values()))
    return found


def subject(name: str, encoder: Encoder, data: Images, folder: Path, epochs: int | None, half: bool) -> Subject:
    """The features of all parts, from the folder where they are there."""
    weights, parts = fingerprint(encoder), data.val_dataloader()
    kind = f"{ssl_zoo.__version__}{'_half' * half}.safetensors"
    features = []
    for part in parts:
        path = folder / f"{weights}_{part.source.fingerprint()}_plain_{kind}"
        bar = tqdm(part, f"{name}: features", unit="batch", file=sys.stderr, disable=None)
        features.append(cached(path, partial(extract, encoder, bar, half)))
        check_finite(features[-1], names(part))
    size = parts[0].image(0).shape[-1]
    path = folder / f"{weights}_{data.train.fingerprint()}_view_{{}}_{kind}"
    one, two = (cached(Path(str(path).format(i)), partial(extract, encoder, view_batches(data, size, i), half))
                for i in (0, 1))
    device = encoder.mean.device
    train, test, one, two = (Features(*(column.to(device) for column in part))
                             for part in (features[0], features[-1], one, two))
    return Subject(encoder, data, train, train if len(parts) == 1 else test, (one, two), size, name, epochs)


def names(part: Loader) -> Sequence[str]:
    return part.source.names if isinstance(part.source, Files) else [f"image {i}" for i in range(len(part.source))]


def view_batches(data: Images, size: int, which: int) -> Any:
    """Batches of one of SimCLR's two views of some training images, always the same."""
    row, = PRESETS["simclr" if size > 64 else "simclr_32"]
    augment = Augmentation([ViewSpec(**vars(row) | {"size": size})])
    for batch, places in enumerate(torch.from_numpy(some(len(data.train), PAIRS)).split(BATCH)):
        kept, images = [], []
        for place in places.tolist():
            try:
                images.append(data.train.read(place))
            except Exception:            # whatever a decoder raises on a damaged file, which the loader has named
                continue
            kept.append(place)
        if images:
            key = Key(0, 0, batch, 0)
            view = augment(augment.cut(images, key), key)[which].images
            yield view, data.train.labels[kept], torch.tensor(kept)


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
    found.notes["linear_grid"] = {"chosen": grid.cell._asdict(), "validation": [
        {**cell._asdict(), "accuracy": accuracy} for cell, accuracy in grid.validation.items()]}
    found.pictures["confusion"] = charts.confusion_matrix(s.test.labels, grid.predictions, s.data.classes,
                                                          f"{s.name}: linear_grid")


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


def from_health(s: Subject, found: Found) -> None:
    chosen = torch.from_numpy(some(len(s.train.x), HEALTH)).to(s.train.x.device)
    x, labels = s.train.x[chosen], s.train.labels[chosen]
    found.scores.update({"health/feature_std": number(feature_std(x)), "health/rankme": number(rankme(x)),
                         "health/uniformity": number(uniformity(x))})
    if (labels >= 0).all():
        joint, conditional = tolerance(x, labels)
        found.scores.update({"health/tolerance": number(conditional), "health/tolerance_joint": number(joint)})
    one, two = (view.x for view in s.views)
    pairs = similarities(one, two)
    found.scores["health/alignment"] = number(alignment(one, two))
    for name, cosines in zip(("positive", "negative"), pairs, strict=True):
        found.scores[f"health/{name}_mean"] = number(cosines.mean)
        found.scores[f"health/{name}_variance"] = number(cosines.variance)
    found.pictures["similarities"] = charts.similarity_histogram(pairs.positives.counts, pairs.negatives.counts, EDGES,
                                                                 s.name)


def on_images(protocol: Any, recipe: augmented.Recipe) -> Callable[[Subject, Found], None]:
    def run(s: Subject, found: Found) -> None:
        source = s.data.train
        if isinstance(source, Files):
            source.augment = augmented.crop_and_flip(s.size)
        batch = min(s.data.batch_size, len(source))
        trained = protocol(s.encoder, Loader(source, batch, s.data.workers, training=True),
                           s.data.val_dataloader()[1], len(s.data.classes), s.size, epochs=s.epochs or recipe.epochs)
        found.scores[trained.name] = trained.score

    return run


PROTOCOLS: dict[str, Callable[[Subject, Found], None]] = {
    "knn": from_knn, "linear_grid": from_grid, "logistic": closed(logistic, "logistic"),
    "naive_bayes": closed(naive_bayes, "naive_bayes"),
    "nearest_class_mean": closed(nearest_class_mean, "nearest_class_mean"), "lowshot": from_low_shot,
    "fewshot": from_few_shot, "retrieval": from_retrieval, "health": from_health,
    "linear_simclr": on_images(augmented.linear_simclr, augmented.LINEAR),
    "finetune_simclr": on_images(augmented.finetune_simclr, augmented.FINETUNE)}
QUICK = tuple(PROTOCOLS)[:-2]   # the others train on images: minutes to hours each, so only where asked


def measure(s: Subject, protocols: Sequence[str], dense: Dense | None) -> Found:
    found = Found({}, [], {}, {})
    why = no_accuracy(s)
    if why and (missing := [name for name in protocols if name != "health"]):
        found.left_out.append(f"{', '.join(missing)}: {why}")
    single = s._replace(train=s.train._replace(x=s.train.x.float()), test=s.test._replace(x=s.test.x.float()))
    for name in tqdm([name for name in protocols if not why or name == "health"], s.name, unit="protocol",
                     file=sys.stderr, disable=None):
        try:
            PROTOCOLS[name](s if name == "knn" else single, found)   # which converts half precision piece by piece
        except ValueError as error:      # what the other protocols found is kept
            found.left_out.append(f"{name}: {error}")
    found.pictures["feature_map"] = charts.feature_map(single.test.x, s.test.labels, s.data.classes, s.name)
    if dense is not None:
        try:
            measure_dense(s, dense, found)
        except ValueError as error:
            found.left_out.append(f"linear_dense: {error}")
    return found


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

def write(folder: Path, data: Images, encoders: Mapping[str, Encoder], found: Mapping[str, Found],
          failed: Mapping[str, str]) -> None:
    """report.json, report.md and the pictures not yet there."""
    scores = {name: one.scores for name, one in found.items()}
    table = summary.rows(scores)
    protocols = summary.describe(list(dict.fromkeys(name for one in scores.values() for name in one)))
    pictures = [save(folder, name if len(encoders) > 1 else "", kind, picture)
                for name, one in found.items() for kind, picture in one.pictures.items()]
    if any(name.startswith("lowshot/") for one in scores.values() for name in one):
        pictures.append(save(folder, "", "learning_curves", charts.learning_curves(scores, "accuracy from few labels")))
    left_out = [f"{name}: {said}" for name, one in found.items() for said in one.left_out]
    left_out += [f"{name} was not measured: {said}" for name, said in failed.items()]
    parts = {"train": len(data.train), "test": len(data.test) if data.test is not None else 0}
    (folder / "report.json").write_text(json.dumps({
        "data": {"class": type(data).__name__, "images": parts, "classes": data.classes,
                 "fingerprints": [part.source.fingerprint() for part in data.val_dataloader()]},
        "encoders": {name: {"fingerprint": fingerprint(encoders[name]), "features": encoders[name].dim,
                            "scores": summary.plain(one.scores), "notes": one.notes} for name, one in found.items()},
        "differences": summary.differences(scores),
        "left_out": left_out, "protocols": protocols,
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__}}, indent=2) + "\n")
    (folder / "report.md").write_text("\n".join([
        f"# Evaluation on {parts['train']:,} training and {parts['test']:,} test images\n", summary.as_markdown(table),
        summary.LEGEND, *(["\n## Left out\n", *(f"- {said}" for said in left_out)] if left_out else []),
        "\n## Protocols\n", *(f"- `{name}`: {text}" for name, text in protocols.items()),
        "\n## Pictures\n", *(f"![{path.stem}]({path.name})" for path in pictures)]) + "\n")


def save(folder: Path, encoder: str, kind: str, picture: Any) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", encoder)
    path = folder / (f"{slug}_{kind}.png" if slug else f"{kind}.png")
    (picture if hasattr(picture, "save") else charts.picture(picture)).save(path)
    return path
