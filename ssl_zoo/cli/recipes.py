"""The recipes that are shipped with the package: by name instead of by path, and the command recipes, which lists them.

Nothing heavy is imported here: a misspelt name is reported, and the list printed, before torch is loaded.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_zoo.cli.messages import Options

PACKAGE = Path(__file__).parents[1]
FIELDS = ("Paper", "Setting", "Run", "Hardware", "Time", "Expected", "Measured by", "Against the paper")
COLUMNS = ("Hardware", "Time", "Expected")   # of the list, beside the paper: each up to its first semicolon


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes: paper, hardware, time and expected numbers; the whole heading of one that is named in full."""
    parser = Options("recipes", recipes.__doc__)
    parser.add_argument("filter", nargs="?", default="", help="only recipes with this in their name or heading")
    wanted = parser.parse_args(arguments).filter
    paths = {name: path for name, path in shipped().items() if wanted.lower() in f"{name}\n{comment(path)}".lower()}
    if wanted in paths:
        print(re.sub("(?m)^# ?", "", comment(paths[wanted])), end="")
        return
    if not paths:
        raise ValueError(f"no recipe has {wanted} in its name or heading{did_you_mean(wanted)}")
    rows = [("recipe", "paper", *map(str.lower, COLUMNS))]
    for name, path in paths.items():
        said = heading(path)
        paper = re.search(r"arXiv:[\d.]+", said["Paper"])
        rows.append((name, paper[0] if paper else "", *(said[column].partition(";")[0] for column in COLUMNS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))


def shipped() -> dict[str, Path]:
    """Every recipe of the package by its name, such as cifar10/simclr."""
    inside, beside = PACKAGE / "recipes", PACKAGE.parent / "recipes"   # of an installed package; of a checkout
    folder = inside if inside.is_dir() else beside
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def heading(path: Path) -> dict[str, str]:
    """What a recipe's first lines say, by field: `# Field: text`, which lines starting with `#   ` continue.

    Raises:
        ValueError: a line of the heading has neither form.
    """
    said: dict[str, str] = {}
    for line in comment(path).splitlines():
        if field := re.fullmatch(r"# ([A-Z][a-z ]+): (.+)", line):
            said[field[1]] = field[2]
        elif said and (more := re.fullmatch(r"#   (\S.*)", line)):
            said[next(reversed(said))] += f" {more[1]}"
        else:
            raise ValueError(f"{path}: the heading's line {line!r} is not '# Field: text', nor does it continue one")
    return said


def comment(path: Path) -> str:
    """The lines before a recipe's first setting."""
    return re.match(r"(#.*\n)*", path.read_text())[0]   # type: ignore[index]   # matches nothing where there are none


def with_recipes(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, with a path in place of each recipe's name.

    Raises:
        FileNotFoundError: neither a file in the current folder nor a shipped recipe has that name.
    """
    words = list(arguments)
    for place, value in configs(words):
        words[place] = words[place].removesuffix(value) + path_of(value)
    return words


def configs(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Place and value of each --config among the arguments; settings that stand there themselves are left out."""
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c") and not equals:
            place, value = place + 1, "".join(arguments[place + 1:place + 2])
        if option in ("--config", "-c") and value and not re.search(r"[\n{]|: ", value):
            yield place, value


def path_of(name: str) -> str:
    """The path of the recipe called `name`: a file of that path in the current folder, or else a shipped one."""
    for path in (Path(name), Path(f"{name}.yaml"), shipped().get(name.removesuffix(".yaml"))):
        if path is not None and path.is_file():
            return str(path)
    raise FileNotFoundError(f"there is no recipe {name}{did_you_mean(name)}")


def did_you_mean(name: str) -> str:
    name = re.sub(r"^(\./)?recipes/|\.ya?ml$", "", name)
    near = difflib.get_close_matches(name, shipped(), n=1)
    return f"; did you mean {near[0]}?" if near else "; ssl-zoo recipes lists those there are"


def run_name(arguments: Sequence[str]) -> str:
    """What a run's folder is called: its recipe's path below the folder `recipes`, as in cifar10/simclr.

    A recipe elsewhere gives its path as it was typed, or only its file's name where that starts outside the current
    folder; a run without a recipe is called unnamed.
    """
    for _, value in configs(arguments):
        *folders, name = Path(value).with_suffix("").parts
        if "recipes" in folders:
            return "/".join([*folders[len(folders) - folders[::-1].index("recipes"):], name])
        return name if Path(value).is_absolute() or ".." in folders else "/".join([*folders, name])
    return "unnamed"
