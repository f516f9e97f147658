"""What `ssl-zoo compare` is to compare: recipes with what is set in them, and folders of finished runs."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo.cli.recipes import did_you_mean, path_of, run_name
from ssl_zoo.files import version
from ssl_zoo.paths import encoder_files, mapping, plain_json, plain_yaml

OF_A_RUN = ("config", "seed_everything", "resume", "ckpt_path", "weights_only")   # what is no part of a recipe


class Arm(NamedTuple):
    """One line of the comparison."""

    name: str
    recipe: str                     # its path; empty of finished runs
    options: Sequence[str] = ()     # of fit, as --set has them
    runs: Sequence[Path] = ()       # folders of finished runs

    @property
    def place(self) -> str:
        """The folder of its runs."""
        return re.sub(r"[^\w.=/-]+", "_", self.name)


def found(given: Sequence[str], sets: Sequence[str]) -> list[Arm]:
    """The arms of a comparison: each recipe with each combination of what is set, then the finished runs."""
    variants = list(itertools.product(*map(settings_of, sets)))
    varied = [len(values) > 1 for values in map(settings_of, sets)]
    arms = []
    for name in given:
        if folders := finished(Path(name)):
            arms.append(Arm(title(Path(name)), "", runs=folders))
            continue
        path = recipe_path(name)
        for variant in variants:
            said = [f"{key.rpartition('.')[2]}={value}" for (key, value), changes in zip(variant, varied, strict=True)
                    if changes]
            arms.append(Arm(" ".join([run_name(["--config", path]), *said]), path,
                            [f"--{key}={value}" for key, value in variant]))
    arms = shortened(arms)
    if twice := [arm.name for arm in arms if [one.place for one in arms].count(arm.place) > 1]:
        raise ValueError(f"{twice[0]} stands in the comparison more than once: name each recipe and folder once")
    if sets and not any(arm.recipe for arm in arms):
        raise ValueError("--set changes recipes, and only finished runs are named, which stay as they are")
    if len(arms) < 2:
        raise ValueError(f"{arms[0].name} alone is compared with nothing: name another recipe or folder of runs, or "
                         "several values, as in --set model.temperature=0.1,0.2")
    return arms


def shortened(arms: Sequence[Arm]) -> list[Arm]:
    """With the last part of each recipe's path for a name, where that tells them apart."""
    brief = [re.sub(r"^(\S*/)(?=[^/\s]+)", "", arm.name) for arm in arms]
    return [arm._replace(name=name) if brief.count(name) == 1 else arm for arm, name in zip(arms, brief, strict=True)]


def settings_of(text: str) -> list[tuple[str, str]]:
    """model.temperature=0.1,0.2 as the key with each value; commas within brackets or quotes do not separate."""
    key, equals, values = text.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not re.fullmatch(r"[\w.]+", key) or not values.strip():
        raise ValueError(f"--set takes what a recipe has and its values, as in --set model.temperature=0.1,0.2, and "
                         f"not {text}")
    if key.partition(".")[0] in ("seed_everything", "config", "ckpt_path", "resume") or key.startswith(
            ("trainer.logger", "trainer.default_root_dir", "evaluation")):
        raise ValueError(f"--set {key}: compare itself sets it; seeds are counted by --seeds, the place of all runs is "
                         "--output, and what is measured --protocols")
    parts = re.findall(r"""(?:[^,\[\](){}'"]|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|'[^']*'|"[^"]*")+""", values)
    return [(key, part.strip()) for part in parts]


def recipe_path(name: str) -> str:
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder without a finished run: name a recipe, a run's folder or the folder of "
                         "several, as in runs/cifar10/simclr")
    try:
        return path_of(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no recipe {name}, and no folder of runs{did_you_mean(name)}") from error


# Runs that are there

def finished(folder: Path) -> list[Path]:
    """The finished runs in a folder: itself, or those below it, of several tries of a seed the last."""
    if exported(folder):
        return [folder]
    runs = [path for path in sorted(folder.glob("version_*"), key=version) if exported(path)]
    return runs or [tries[-1] for seed in sorted(folder.glob("seed_*")) if (tries := finished(seed))]


def exported(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and all(path.is_file() for path in encoder_files(folder / "encoder"))


def title(folder: Path) -> str:
    """A finished run's name: its path without the folder of all runs."""
    parts = [part for part in folder.parts if part not in (".", "/", "..")]
    return "/".join(parts[1:] if parts[:1] == ["runs"] and len(parts) > 1 else parts) or str(folder.absolute().name)


def seeds_of(arm: Arm) -> dict[int, Path]:
    """The finished runs of an arm by their seed, which must be of one recipe."""
    from ssl_zoo.evaluation.seeds import differing
    known: dict[int, Path] = {}
    first: dict[str, Any] = {}
    for folder in arm.runs:
        config = plain_yaml(folder / "config.yaml")
        seed = mapping({"": config}, "").get("seed_everything")
        if not isinstance(seed, int):
            raise ValueError(f"{folder}/config.yaml does not say which seed made the run: leave that folder out")
        own = compared(config)
        first = first or own
        if own != first:
            raise ValueError(f"{arm.runs[0]} and {folder} are not seeds of one recipe: they differ in "
                             f"{differing(first, own)}; name them one by one")
        known.setdefault(seed, folder)
    return known


def compared(config: Any) -> dict[str, Any]:
    """The settings that make two runs those of one recipe."""
    from ssl_zoo.evaluation.seeds import settings
    known = config if isinstance(config, dict) else {}
    return settings({name: value for name, value in known.items() if name not in OF_A_RUN})


def require_same_recipe(folder: Path, config: Any) -> None:
    """Refuse to take a run for one of this recipe that was made by another."""
    from ssl_zoo.evaluation.seeds import differing
    before, now = compared(plain_yaml(folder / "config.yaml")), compared(config)
    if before != now:
        raise ValueError(f"{folder} was made by another recipe than this: they differ in {differing(before, now)}; "
                         "name another --output, or move that folder away")


def origin(folder: Path) -> dict[str, Any]:
    """The provenance that a run has recorded first, which is that of its seed and images; empty of an earlier one."""
    path = folder / "provenance.json"
    return plain_json(path) if path.is_file() else {}
