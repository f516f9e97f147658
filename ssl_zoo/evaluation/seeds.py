"""Which encoders are seeds of one recipe, and how far two recipes differ beyond their images and their seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.special import stdtrit

from ssl_zoo.evaluation.score import Interval, Score, comparable, difference, number

Samples = tuple[Score, ...]   # one score of each seed
# what a run may differ in and still be of the same recipe: the seed, and where it writes
APART = ("seed_everything", "ckpt_path", "trainer.logger", "trainer.default_root_dir")


class Origin(NamedTuple):
    """Where an encoder comes from."""

    path: Path      # its file
    recipe: Any     # plain values, as the run stored them; None where that is unknown
    untrained: bool = False   # a model by its name alone


# Groups

def groups(origins: Mapping[str, Origin]) -> tuple[dict[str, list[str]], list[str]]:
    """The encoders of several seeds of one recipe by a name for all of them, and sentences on those that seem to be.

    Seeds lie in folders `version_*` of one folder, as runs leave them, under the same name there, and their recipes are
    equal but for the seed and for where the run writes. No seed counts twice: a resumed run has that of its first part.

    Args:
        origins: by the encoder's name.
    """
    places: dict[tuple[Path, Path], list[str]] = {}
    for name, origin in origins.items():
        path = origin.path.absolute()
        version = next((folder for folder in path.parents if folder.name.startswith("version_")), None)
        if version is not None:
            places.setdefault((version.parent, path.relative_to(version)), []).append(name)
    found, said = {}, []
    for (folder, _), names in places.items():
        if len(names) > 1:
            recipes, sentences = of_one_recipe({name: origins[name].recipe for name in names})
            said += sentences
            for members in recipes:
                seeds = f"({len(members)} seeds)"
                alone = len(recipes) == 1 and f"{folder.name} {seeds}" not in found
                found[f"{folder.name if alone else f'{members[0]} and others'} {seeds}"] = members
    return found, said


def of_one_recipe(recipes: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Lists of names whose recipes are equal but for their seeds, which differ; and why others are not among them."""
    known: list[tuple[dict[str, Any], dict[int, str]]] = []   # settings, and names by seed
    said = []
    for name, recipe in recipes.items():
        seed = recipe.get("seed_everything") if isinstance(recipe, dict) else None
        if not isinstance(seed, int):
            said.append(f"{name} is taken for no seed of a recipe: it does not say which recipe and seed made it")
            continue
        own = settings(recipe)
        same = next((seeds for one, seeds in known if one == own), None)
        if same is None:
            if known:
                other, seeds = known[0]
                said.append(f"{name} and {next(iter(seeds.values()))} are not seeds of one recipe: they differ in "
                            f"{differing(own, other)}")
            known.append((own, {seed: name}))
        elif seed in same:
            said.append(f"{name} has seed {seed}, as {same[seed]} has, and counts for no other seed")
        else:
            same[seed] = name
    return [list(seeds.values()) for _, seeds in known if len(seeds) > 1], said


def settings(recipe: Any, place: str = "") -> dict[str, Any]:
    """A recipe's values by their dotted places, without those that may differ between its seeds."""
    if place.startswith(APART):
        return {}
    inside: Any = recipe.items() if isinstance(recipe, dict) else enumerate(recipe) if isinstance(recipe, list) else ()
    below = [settings(value, f"{place}.{name}".lstrip(".")) for name, value in inside]
    return {name: value for one in below for name, value in one.items()} if inside else {place: recipe}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The places where two recipes differ, the first three with their values."""
    places = sorted(place for place in one.keys() | other.keys() if one.get(place) != other.get(place))
    shown = [f"{place} ({one.get(place)} and {other.get(place)})" for place in places[:3]]
    return ", ".join(shown) + f" and {len(places) - 3} more" * (len(places) > 3)


# Scores of several seeds

def mean(samples: Samples) -> Score:
    """The mean over seeds of each image's or draw's unit; of one seed, its score as it is."""
    first = samples[0]
    if not all(comparable(first, other) for other in samples[1:]):
        return number(sum(score.value for score in samples) / len(samples))
    return first._replace(units=torch.stack([score.units for score in samples]).mean(0)) if samples[1:] else first


def deviation(samples: Samples) -> float | None:
    """The standard deviation of the scores over seeds; None for one."""
    values = torch.tensor([score.value for score in samples], dtype=torch.float64)
    return values.std().item() if len(samples) > 1 else None


class Difference(NamedTuple):
    """How far one encoder, or the mean of one recipe's seeds, is above another."""

    value: float
    images: Interval | None   # over the images, episodes or draws that both judged
    seeds: Interval | None    # over seeds, where there are several

    @property
    def interval(self) -> Interval | None:
        """From the lower of the two lower ends to the higher of the two higher ones."""
        known = [one for one in (self.images, self.seeds) if one is not None]
        return Interval(min(one.low for one in known), max(one.high for one in known)) if known else None

    @property
    def exceeds(self) -> bool | None:
        """Whether the difference is larger than chance by all that is known; None where nothing is."""
        return self.interval.excludes_zero if self.interval else None


def compare(one: Samples, other: Samples) -> Difference:
    """`one` minus `other`, each the scores of one file or of several seeds."""
    apart, images = difference(mean(one), mean(other))
    return Difference(apart, images, welch(*([score.value for score in samples] for samples in (one, other))))


def welch(one: Sequence[float], other: Sequence[float]) -> Interval | None:
    """Welch's 95 % interval of the difference of two means over seeds; None where neither has several.

    A single seed is taken to scatter as the other side's seeds do, for nothing else is known.
    """
    if len(one) + len(other) < 3 or not all(map(math.isfinite, [*one, *other])):
        return None
    values = [torch.tensor(side, dtype=torch.float64) for side in (one, other)]
    known = [side.var().item() for side in values if len(side) > 1]
    squares = [(side.var().item() if len(side) > 1 else known[0]) / len(side) for side in values]
    total = sum(squares)
    if len(known) == 1:
        degrees = max(len(one), len(other)) - 1.0
    else:
        shares = [square ** 2 / (len(side) - 1) for square, side in zip(squares, values, strict=True)]
        degrees = total ** 2 / sum(shares) if total else len(one) + len(other) - 2.0
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(total)
    middle = (values[0].mean() - values[1].mean()).item()
    return Interval(middle - half, middle + half)
