"""What the numbers say of an encoder in a word, and by which of them; never more than was measured."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ssl_zoo.evaluation.health import COLLAPSED_RANK, COLLAPSED_STD
from ssl_zoo.evaluation.score import Score
from ssl_zoo.evaluation.seeds import Samples, compare, mean

# the first of these that was measured decides; of an unbalanced test part its mean over the classes
JUDGES = ("knn_dino", "linear_cached", "knn_instdisc", "linear_grid", "logistic", "nearest_class_mean", "naive_bayes")


class Verdict(NamedTuple):
    """In a word and a sentence."""

    word: Literal["collapsed", "learns", "above", "level", "below", "unknown"]
    reason: str

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


def judge(scores: Mapping[str, object]) -> str | None:
    """The name of the score that decides."""
    for name in JUDGES:
        if name in scores:
            return f"balanced_accuracy/{name}" if f"balanced_accuracy/{name}" in scores else name
    return None


def verdict(found: Mapping[str, Samples], baseline: Mapping[str, Samples], against: str, *,
            learnt: bool = False) -> Verdict:
    """Whether features have collapsed, or else where an accuracy stands: above the baseline's, level with it or below.

    Few directions may hold a few classes, so that features whose accuracy is above have not collapsed by their rank.

    Args:
        found: scores by name, of one encoder or of several seeds.
        baseline: those of what it is compared with.
        against: what that is, for the sentence.
        learnt: the baseline is the same encoder before training, so that above it means that it learns.
    """
    if flat := below(found, "health/feature_std", COLLAPSED_STD):
        return Verdict("collapsed", f"{flat}, where 1 is even")
    said = accuracy(found, baseline, against, learnt)
    if said.word not in ("learns", "above") and (thin := below(found, "health/rankme", COLLAPSED_RANK)):
        return Verdict("collapsed", f"{thin}: one direction holds nearly all")
    return said


def accuracy(found: Mapping[str, Samples], baseline: Mapping[str, Samples], against: str, learnt: bool) -> Verdict:
    name = judge(found)
    if name is None:
        return Verdict("unknown", "no accuracy was measured that decides, such as knn_dino, without which features "
                                  "that have not collapsed may still tell nothing apart")
    if name not in baseline:
        return Verdict("unknown", f"{name} {shown(found[name])}, and there is no {against} to compare it with")
    apart = compare(found[name], baseline[name])
    if apart.interval is None:
        return Verdict("unknown", f"{name} {shown(found[name])}, and {shown(baseline[name])} for {against}, measured "
                                  "on images that cannot be compared one by one")
    reason = (f"{name} {shown(found[name])} is {100 * apart.value:+.1f} [{100 * apart.interval.low:+.1f}, "
              f"{100 * apart.interval.high:+.1f}] points from {against}, {shown(baseline[name])}")
    if not apart.exceeds:
        return Verdict("level", reason)
    return Verdict(("learns" if learnt else "above") if apart.value > 0 else "below", reason)


def of_guessing(found: Mapping[str, Samples], guess: Score | None) -> dict[str, Samples]:
    """The baseline of guessing the commonest class, for the score that decides."""
    name = judge(found)
    return {} if name is None or guess is None else {name: (guess._replace(classes=found[name][0].classes),)}


def below(found: Mapping[str, Samples], name: str, least: float) -> str:
    """That this score is below what it is at least; empty where it is not, or was not measured."""
    value = mean(found[name]).value if name in found else least
    return f"{name} is {value:.3g}, below {least:g}" if value < least else ""


def shown(samples: Samples) -> str:
    return f"{100 * mean(samples).value:.1f} %"
