"""A recipe for a folder of images, chosen from the images and the machine: `ssl-zoo fit my_images`."""

import copy
import dataclasses
import difflib
import glob
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_zoo.cli.messages import QUIET, did_you_mean
from ssl_zoo.cli.recipes import path_of, shipped
from ssl_zoo.files import free, put
from ssl_zoo.paths import plain_yaml

METHOD = "SimCLR"                    # where none is named
SIDES = (32, 64, 96, 128, 224)       # of views, in pixels
LOOKED_AT = 64                       # images whose size is looked at
CACHE = 4 * 2 ** 30                  # bytes that decoded images may take on the disk
OPTIONS = {"encoder": "--model.encoder", "batch": "--data.batch_size", "epochs": "--trainer.max_epochs",
           "workers": "--data.workers", "precision": "--trainer.precision", "cache": "--data.cache"}   # by reason
FIXED = {"queue", "prototypes", "clusters"}   # options of methods that were chosen for a recipe's own batch


class Folder(NamedTuple):
    """What the choice needs to know of the images."""

    root: str
    images: int   # to train on
    side: int     # the shorter one in pixels, the median


class Machine(NamedTuple):
    """What the choice needs to know of the machine."""

    gpu: str        # its name, empty without one
    gigabytes: int  # of the GPU
    bfloat16: bool  # whether the GPU is fast in it
    cores: int


class Chosen(NamedTuple):
    """A recipe, and by option why it is so."""

    recipe: dict[str, Any]
    reasons: dict[str, str]


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """The arguments of fit with the recipe that was chosen for the folder, their first word; prints the reasons."""
    (given, *rest), method = taken_out(arguments, "--method")
    if given.startswith("-"):
        raise ValueError("--method goes with a folder of images, which comes first: ssl-zoo fit my_images --method "
                         "MoCo")
    if any(word.partition("=")[0] in ("--config", "-c") for word in rest):
        raise ValueError(f"{given} gets a recipe of its own, and --config names another: leave one of them out, or "
                         f"name the images with --data.root {given}")
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if near := [option for option in options if difflib.get_close_matches(option, ["--method"], cutoff=0.8)]:
        raise ValueError(f"there is no option {near[0]}; did you mean --method?" if near[0] != "--method" else
                         "--method is given twice")
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(no_folder(given))
    name, base = recipe_of(method or METHOD)
    cpu = taken_out(rest, "--trainer.accelerator")[1] == "cpu"
    asked = {name: value for name, option in OPTIONS.items() if (value := taken_out(rest, option)[1]) is not None}
    chosen = choose(base, look_at(given, root), machine(cpu), {name: int(value) for name, value in asked.items()
                                                               if value.isdecimal() and int(value)})
    path = write(chosen, root.resolve().name + (f"_{name}" if method else ""), given, name)
    if QUIET not in rest:
        chosen.reasons.update({name: f"{value}, as you ask" for name, value in asked.items()})
        print(f"{path}: the recipe folder/{name} for these images and this machine; edit it, and run it again with "
              f"ssl-zoo fit --config {path}", *(f"  {option}: {why}" for option, why in chosen.reasons.items()),
              sep="\n", flush=True)
    return ["--config", str(path), *rest]


def taken_out(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without an option, and its value, None where it is not among them."""
    words, value = list(arguments), None
    for place, word in enumerate(words):
        name, equals, inline = word.partition("=")
        if name == option:
            if not equals and place + 1 == len(words):
                raise ValueError(f"{option} needs a value")
            value = inline if equals else words[place + 1]
            del words[place:place + 1 + (not equals)]
            break
    return words or ["--"], value


def no_folder(given: str) -> str:
    known = given.removesuffix(".yaml")
    if known in shipped() or Path(given).is_file() and given.endswith((".yaml", ".yml")):
        return f"{given} is a recipe, and no folder of images: ssl-zoo fit --config {given}"
    return f"there is no folder {given} of images: give one, or a recipe with --config"


def recipe_of(method: str) -> tuple[str, dict[str, Any]]:
    """The name and the content of the shipped recipe for folders of a method, by the name of either."""
    found: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    for name in (name.removeprefix("folder/") for name in shipped() if name.startswith("folder/")):
        found[name] = plain_yaml(Path(path_of(f"folder/{name}")))
        kinds.setdefault(found[name]["model"]["class_path"].lower(), name)   # simclr, and not simclr_genview
    name = method.lower().replace("-", "_")
    name = name if name in found else kinds.get(name.replace("_", ""), "")
    if not name:
        names = sorted({recipe["model"]["class_path"] for recipe in found.values()})
        raise ValueError(f"there is no recipe for folders of the method {method}{did_you_mean(method, names)}")
    return name, found[name]


def look_at(given: str, root: Path) -> Folder:
    """The number of the images and their usual size."""
    from PIL import Image

    from ssl_zoo.data import ImageFolder
    from ssl_zoo.data.counting import holds_shards
    if holds_shards(root):
        raise ValueError(f"{given} holds shards: ssl-zoo fit --config folder/simclr --data ImageShards --data.root "
                         f"{given}")
    images = ImageFolder(given)
    images.said = True      # the run itself says it
    images.read()
    if len(images.train) < 2:
        raise ValueError(f"{given} has 1 image to train on, and an encoder learns from comparing them: give it more")
    sides = []
    for place in images.train.spaced(LOOKED_AT):
        try:
            with Image.open(images.train.names[place]) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):   # damaged, or of a kind that Pillow does not read
            continue
    return Folder(given, len(images.train), int(statistics.median(sides)) if sides else SIDES[-1])


def machine(cpu: bool = False) -> Machine:
    """This machine; without its GPU where the run is not to use it."""
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cpu or not torch.cuda.is_available():
        return Machine("", 0, False, cores)
    about = torch.cuda.get_device_properties(0)
    return Machine(about.name, round(about.total_memory / 2 ** 30), about.major >= 8, cores)


def choose(base: Mapping[str, Any], folder: Folder, machine: Machine, asked: Mapping[str, int] = {}) -> Chosen:
    """Fit a recipe for folders to the images and the machine, with the numbers of epochs and batch that are asked for.
    """
    recipe, why = copy.deepcopy(dict(base)), {}
    model, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    limit = 64 if not machine.gpu else 224 if folder.images >= 10_000 else 128
    size = max([side for side in SIDES if side <= min(folder.side, limit)], default=SIDES[0])
    model["augment"]["views"] = rows_of(model["augment"]["views"])
    resize(model["augment"]["views"], size)
    why["image size"] = f"{size} pixels: {folder.side} is the shorter side of most images, and at most {limit} " + (
        "is for a GPU and this many images" if machine.gpu else "is for a CPU")
    if not machine.gpu:
        model["encoder"] = {"class_path": "NarrowResNet", "init_args": {"width": 32}}
    elif size <= 64:
        model["encoder"]["init_args"]["small_images"] = True
    why["encoder"] = (f"ResNet-18, on {machine.gpu}" if machine.gpu else
                      "NarrowResNet, which is small: there is no GPU to use")
    batch, why["batch"] = batch_size(folder.images, machine, bool(FIXED & model.keys()))
    if "batch" in asked:
        batch, why["batch"] = asked["batch"], f"{asked['batch']}, as you ask"
    rate = model["optimizer"]["init_args"]
    rate["lr"] = float(f"{rate['lr'] * max(1, batch / data['batch_size']) ** 0.5:.2g}")
    epochs = asked.get("epochs", count_epochs(folder.images, bool(machine.gpu)))
    why["epochs"] = (f"{epochs}, in which {epochs * folder.images:,} images are seen; the first steps say how long "
                     "that takes")
    workers = min(machine.cores, 16) if machine.gpu else max(1, min(machine.cores, 4))
    why["workers"] = f"{workers}, for {machine.cores} cores"
    data |= {"root": folder.root, "batch_size": batch, "evaluation_size": size, "workers": workers}
    trainer |= {"max_epochs": epochs, "check_val_every_n_epoch": max(1, epochs // 10)}
    recipe["checkpoints"] = {"every_n_epochs": max(1, epochs // 4)}
    if machine.bfloat16:
        trainer["precision"] = "bf16-mixed"
    why["precision"] = "bf16-mixed: the GPU is fast in it" if machine.bfloat16 else "32-true: " + (
        "the GPU has no bfloat16" if machine.gpu else "a CPU gains nothing by less")
    if "images" in model:
        model["images"] = folder.images
    if "splits" in model:
        model["splits"] = min(model["splits"], batch // 2)
    data |= cache(folder, size, why)
    return Chosen(recipe, why)


def rows_of(views: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of views, which a recipe may name, as a recipe writes them: without what is left as it is."""
    if not isinstance(views, str):
        return views
    from ssl_zoo.views.specs import PRESETS, ViewSpec
    usual = {field.name: field.default for field in dataclasses.fields(ViewSpec)}
    return [{name: list(value) if isinstance(value, tuple) else value for name, value in vars(row).items()
             if value != usual[name]} for row in PRESETS[views]]


def resize(rows: Sequence[dict[str, Any]], size: int) -> None:
    """Make the largest views `size` pixels wide, and the others smaller in proportion, in steps of 16 pixels."""
    largest = max(row["size"] for row in rows)
    for row in rows:
        row["size"] = size if row["size"] == largest else max(16, 16 * round(row["size"] * size / largest / 16))


def batch_size(images: int, machine: Machine, fixed: bool) -> tuple[int, str]:
    """64 as the recipes for folders have it; fewer of few images, more of very many on a large GPU; and why."""
    trained = f"{images:,} training images"
    if images < 4:
        return 2, f"2: the fewest that can be compared, of {trained}"
    if images < 64:
        batch = 2 ** (images.bit_length() - 2)
        return batch, f"{batch}: between a quarter and half of {trained}"
    if images < 512:
        return 32, f"32: between a sixteenth and half of {trained}"
    if images < 5000 or machine.gigabytes < 16 or fixed:
        return 64, f"64: at most an eighth of {trained}" + (
            ", and what the method's options are made for" if fixed and images >= 5000 else "")
    batch = 256 if machine.gigabytes >= 32 else 128
    return batch, f"{batch}: at most a nineteenth of {trained}, and the GPU has {machine.gigabytes} GB"


def count_epochs(images: int, gpu: bool) -> int:
    """As many as show 5 million images on a GPU, 100 thousand on a CPU, within limits."""
    seen, fewest, most = (5_000_000, 50, 400) if gpu else (100_000, 10, 200)
    return max(fewest, min(most, round(seen / images)))


def cache(folder: Folder, size: int, why: dict[str, str]) -> dict[str, Any]:
    """Keep images decoded that are much larger than their views, if there is room: decoding would take most of a run.
    """
    kept = 2 * size                                        # a crop of a fifth of the area still has 0.9 of its view
    needed = folder.images * 4 * kept ** 2                 # bytes, of three channels and 4:3
    if folder.side < 2 * kept or needed > CACHE:
        return {}
    place = f"cache/{Path(folder.root).resolve().name}"
    why["cache"] = (f"{place}, about {max(1, needed // 10 ** 6):,} MB: the images are decoded once, at {kept} pixels, "
                    f"and not at {folder.side} in every epoch")
    return {"cache": place, "cache_size": kept}


def write(chosen: Chosen, name: str, given: str, base: str) -> Path:
    """The recipe's file in the current folder: one that is the same, or a new one; nothing is replaced."""
    import yaml
    text = "\n".join([f"# Chosen by ssl-zoo fit {given} from the recipe folder/{base}",
                      *(f"# {option}: {why}" for option, why in chosen.reasons.items()),
                      yaml.safe_dump(chosen.recipe, sort_keys=False, default_flow_style=None, width=120)])
    path = Path(f"{name}.yaml")
    for there in (path, *map(Path, sorted(glob.glob(f"{glob.escape(name)}-*.yaml")))):
        if there.is_file() and there.read_text(encoding="utf-8") == text:
            return there
    path = free(path)
    put(path, text)
    return path
