"""What the commands say: one sentence for whatever was wrong, and how to put it right. Imports nothing heavy."""

import argparse
import difflib
import inspect
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ssl_zoo.own_code import line_of, raised_at

TRUST = ("import path of a class of your own that a file names, such as my_module.Align; it will run. Without this, "
         "nothing is imported for a file but ssl_zoo's classes. May be given several times")
QUIET = "--quiet"   # of fit and validate: nothing is said but warnings, errors and the table at the end
FAMILIES = ("methods", "data", "evaluation", "encoders", "optim")   # whose classes a recipe may name

ORDINARY = (ValueError, OSError, ImportError)   # whose text is a sentence
INPLACE = "needed for gradient computation has been modified"

NOISE = re.compile("Does not validate|Subtypes:|Errors:|Given value|Expected a path|"
                   "Expected a <class '(NoneType|collections.abc.Sequence)'>")


class Options(argparse.ArgumentParser):
    """The options of one command, read before anything heavy is imported.

    Args:
        command: its name.
        description: for its help.
        others: starts of further options, which `parse_known_args` hands back.
    """

    def __init__(self, command: str, description: str | None, *, others: Sequence[str] = (), **more: Any):
        super().__init__(f"ssl-zoo {command}", description=description, allow_abbrev=False, **more)
        self.others = tuple(others)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        for word in args:
            option, known = word.partition("=")[0], [*filter(re.compile("--").match, self._option_string_actions)]
            if option.startswith("--") and option not in known and not option.startswith(self.others):
                raise ValueError(f"{self.prog} has no option {option}{did_you_mean(option, [*known, *self.others])}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}: {self.prog} --help says more")


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that does not exist: the nearest one that does, or all."""
    near = difflib.get_close_matches(wrong, known := list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def expected(error: BaseException) -> bool:
    """Whether an error is about what the user gave, so that its sentence is enough."""
    return (isinstance(error, ORDINARY) or misconfigured(error) or lightnings(error) or INPLACE in str(error)
            or full(error) or bool(raised_at(error)))


def full(error: BaseException) -> bool:
    """Whether a device has run out of memory; torch's error of a CPU has no class of its own."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def misconfigured(error: BaseException) -> bool:
    return type(error).__name__ == "MisconfigurationException"   # by its name: importing Lightning takes seconds


def lightnings(error: BaseException) -> bool:
    """Whether Lightning itself raised an error: it has a sentence for each of its options."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, RuntimeError | TypeError) and bool(files) and "pytorch_lightning" in files[-1].parts


def way_out(error: BaseException) -> str:
    """What `error` says, and what to do where it is not ours and does not say."""
    said = parse_error(str(error))   # jsonargparse wraps what a constructor says in its tree
    if misconfigured(error) and "is not a valid input" in said:
        return f"{said.rstrip('.!')}: give --trainer.devices a number from 1, or auto"
    if misconfigured(error) and re.search("accelerator|backend|CUDA|GPU", said):
        return f"{said.rstrip('.!')}: this machine has none; run with --trainer.accelerator cpu, or auto"
    if full(error):
        where = said.partition(". ")[0] if "CUDA" in said else "the CPU is out of memory"
        return f"{where}: lower --data.batch_size, or add --trainer.precision bf16-mixed"
    if "must be a mapping, not NoneType" in said:
        return "a class of the recipe has null where its options belong: leave it out, or write {} for their defaults"
    if INPLACE in said:
        return ("the backward pass needs a tensor that was changed after the loss had read it: give the loss a copy, "
                ".clone() or Queue.snapshot(); --trainer.detect_anomaly true shows where the loss reads it")
    if (where := raised_at(error)) and not re.search(r"line \d+ of \S+\.py", said):
        kind = "" if isinstance(error, ORDINARY) else f"{type(error).__name__}: "
        return f"{kind}{said} ({where})"
    return said


def parse_error(message: str) -> str:
    """jsonargparse's tree of attempts as one sentence: where in the recipe, what is wrong, what would be near."""
    where, wrong, kind = [], [], None
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        key = re.match(r'(?:error: )?Parser key "([^"]+)":?\s*(.*)', line)
        path = re.match(r"Problem with given class_path '([^']+)'", line)
        if key:
            where.append(key[1])
            wrong += [key[2]] if key[2] else []
        elif path:
            kind = path[1]
            where.append(kind.rpartition(".")[2])
        elif line and not NOISE.match(line):
            wrong.append(line)
    choices = [line for line in wrong if "Expected a typing.Literal" in line]   # rows of views, or one of these names:
    text = ("; ".join(dict.fromkeys(line for line in wrong if line not in choices)) or "; ".join(choices)
            or (found := re.search("Expected a .* Got value: .*", message)) and found[0] or message)
    if choice := re.search(r"Expected a typing.Literal\[(.+)\]", text):
        given = re.search(r"Given value type: <class 'str'>\s+Given value: (.+)", message)    # not a whole block
        text = f"expected one of {choice[1]}" + (f", not {given[1]}" if given else "")
    if unknown := re.search(r"Expected a dot import path string: (\w+)", text):
        names = [name for family in FAMILIES for name in dir(import_module(f"ssl_zoo.{family}"))]
        near = difflib.get_close_matches(unknown[1], names, n=1)
        text = f"there is no class {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
    if lacking := re.search(r"Requirement '([\w-]+)[^']*' not met", text):
        text = f"the package {lacking[1]} is not installed: pip install {lacking[1]}"
    if option := re.search(r"Option '([^']+)' is not accepted|(?:does not accept option '|arguments: --)trainer.(\w+)",
                           text):
        takes = parameters(kind or "pytorch_lightning.Trainer")
        if kind and option[1] and option[1].partition(".")[0] in takes:
            module, _, name = kind.rpartition(".")
            return (f"{name} does not hand its option {option[1].partition('.')[0]} on to its base: let __init__ take "
                    f"**kwargs and call super().__init__(**kwargs) ({line_of(getattr(import_module(module), name))})")
        near = difflib.get_close_matches(option[1] or option[2], takes, n=1)
        text += f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(takes)}"
    if where == ["resume"]:
        text += "; --ckpt_path takes a checkpoint's path"
    return ": ".join([" > ".join(where), text] if where else [text])


def parameters(path: str) -> list[str]:
    """The options of a class by its import path, those of its bases included."""
    module, _, name = path.rpartition(".")
    kinds = inspect.getmro(getattr(import_module(module), name))
    ours = path.partition(".")[0], "ssl_zoo."
    return list(dict.fromkeys(option for kind in kinds if kind.__module__.startswith(ours)
                              for option, parameter in inspect.signature(kind).parameters.items()
                              if parameter.kind is not parameter.VAR_KEYWORD))


def sentence(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
             ) -> str:
    """A warning on a line of its own, also where a bar moves; where it is ours, without the code that gives it."""
    for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
        bar.clear()
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"warning: {message}\n"
    return f"{category.__name__}: {message} ({filename}:{lineno})\n"


def quiet() -> None:
    """Lightning's hints about its own workings are not for the user of a recipe."""
    warnings.formatwarning = sentence
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed",
                 "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LightningCLI's args parameter.*", ".*LeafSpec.*",
                    ".*smaller than the logging interval.*", ".*You requested to overfit but enabled.*",
                    ".*You have overridden `on_after_batch_transfer`.*", ".*sync_dist=True.*",
                    ".*The dirpath has changed.*",
                    ".*module.s. in eval mode at the start of training.*"):   # a frozen judge of views
        warnings.filterwarnings("ignore", message)
