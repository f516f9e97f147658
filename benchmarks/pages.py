"""Pages of the site that are made while it is built, as a hook of mkdocs: the home page, and one for each method.

    mkdocs build --strict          or: make docs
    python benchmarks/pages.py swav             print the page of ssl_zoo/methods/swav.py

A method's page comes from its docstring, its equation and traps in docs/methods.yaml, the headings of its recipes and
the records in results/. Equations become MathML, which browsers draw by themselves: no script and no font is fetched.
"""

import ast
import json
import logging
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
NO_METHOD = ("__init__", "genview")                # files of ssl_zoo/methods without a class that trains
MEASURED = ("knn_dino", "linear_cached")           # of methods.json
AT_TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "CITATION.cff": "CITATION.cff"}

sys.path.insert(0, str(ROOT))                      # mkdocs may run in an environment without ssl_zoo
from ssl_zoo.cli.recipes import heading, shipped  # noqa: E402


class Class(NamedTuple):
    """A method, as its file says it."""

    name: str
    idea: str      # the docstring's first line
    more: str      # and what follows, up to the arguments


def on_config(config: Any) -> Any:
    """Draw equations, and put every page into the navigation: those that it leaves out come last."""
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": math}]
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] += [{", ".join(one.name for one in classes(file)): f"methods/{file}.md"}
                                 for file in method_files()]
    left = sorted(page for path in (ROOT / "docs").glob("*.md") if (page := path.name) not in str(config.nav))
    if left:
        config.nav.append({"More": left})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File
    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    for picture in RESULTS.glob("*.png"):
        files.append(File.generated(config, picture.name, content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/ in a checkout; and in the table of methods, a link to the page of each."""
    for name, own in AT_TOP.items():
        markdown = markdown.replace(f"](../{name})", f"]({own})")
    markdown = markdown.replace("](../benchmarks/results/", "](")
    return with_links(markdown) if page.file.src_uri == "methods.md" else markdown


def math(source: str, *_: Any, **__: Any) -> str:
    from latex2mathml.converter import convert
    return f'<p class="equation">{convert(" ".join(source.split()), display="block")}</p>'


def generated() -> dict[str, str]:
    """Every page that no file of docs/ holds."""
    pages = {own: (ROOT / name).read_text() for name, own in AT_TOP.items()}
    home = (ROOT / "README.md").read_text().replace("](docs/", "](")
    home = re.sub(r"\[([^]]+)\]\(notebooks[^)]*\)", r"\1", home)      # which stand in the repository alone
    for name, own in AT_TOP.items():
        home = home.replace(f"]({name})", f"]({own})")
    return pages | {"index.md": home} | {f"methods/{file}.md": method_page(file) for file in method_files()}


def method_files() -> list[str]:
    return sorted(path.stem for path in (ROOT / "ssl_zoo/methods").glob("*.py") if path.stem not in NO_METHOD)


def classes(file: str) -> list[Class]:
    """The methods of a file, read without importing it."""
    found = []
    for node in ast.parse((ROOT / f"ssl_zoo/methods/{file}.py").read_text()).body:
        if isinstance(node, ast.ClassDef) and "Method" in [ast.unparse(base) for base in node.bases]:
            idea, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            found.append(Class(node.name, idea, rest.partition("Args:")[0].strip()))
    return found


def method_page(file: str) -> str:
    """Idea, equation, what the paper says, what we measured, traps, options and code."""
    own = content(ROOT / "docs/methods.yaml").get(file)
    if own is None:
        logging.getLogger("mkdocs").warning("docs/methods.yaml says nothing of ssl_zoo/methods/%s.py: its equation and "
                                            "its traps are missing", file)
        own = {"equation": "", "traps": []}
    kinds = classes(file)
    parts = [f"# {', '.join(one.name for one in kinds)}\n"]
    parts += [f"**{one.name}.** {one.idea}\n\n{one.more}\n" if len(kinds) > 1 else f"{one.idea}\n\n{one.more}\n"
              for one in kinds]
    parts += ["## Equation\n", f"```math\n{own['equation'].strip()}\n```\n"] if own["equation"] else []
    parts += ["## Recipes, and what the paper says\n", recipes_of([one.name for one in kinds])]
    parts += ["## What we measured\n", measured([one.name for one in kinds])]
    parts += ["## Traps\n", "".join(f"- {trap}\n" for trap in own["traps"])] if own["traps"] else []
    parts += ["## Options and code\n"]
    parts += [f"::: ssl_zoo.methods.{file}.{one.name}\n    options:\n      heading_level: 3\n      "
              "members: [training_loss]\n" for one in kinds]
    return "\n".join(parts)


def recipes_of(kinds: list[str]) -> str:
    """A table of the recipes of these classes, and what each says against its paper."""
    rows = ["| recipe | setting | hardware, time | expected |", "|---|---|---|---|"]
    against: dict[str, list[str]] = {}
    for name, path in shipped().items():
        if content(path)["model"]["class_path"].rpartition(".")[2] in kinds:
            said = heading(path)
            cells = (f"`{name}`", said["Setting"], f"{said['Hardware']}; {said['Time']}", said["Expected"])
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            if said["Against the paper"]:
                against.setdefault(said["Against the paper"], []).append(f"`{name}`")
    differ = "".join(f"- {', '.join(names)}: {text}\n" for text, names in against.items())
    return "\n".join(rows) + f"\n\nWhere they differ from the paper:\n\n{differ}"


def measured(kinds: list[str]) -> str:
    """What the records have of these classes: CIFAR-10 on a CPU, and maps of street scenes."""
    record = json.loads((RESULTS / "methods.json").read_text())["figures"]
    rows = []
    for name, one in record["methods"].items():
        path = shipped().get(f"cifar10/{name}_cpu")
        if path and content(path)["model"]["class_path"] in kinds:
            cells = [f"{percent(one[key]['untrained'])} → **{percent(one[key]['trained'])}**" for key in MEASURED]
            rows.append(f"| `cifar10/{name}_cpu` | {one['steps']} | {len(one['seconds'])} | {' | '.join(cells)} |")
    text = ""
    if rows:
        text = (f"On {record['images']:,} images of CIFAR-10, on a CPU, untrained → trained, mean over seeds "
                "(`benchmarks/results/methods.json`). It shows that it learns; steps and batches differ between "
                "methods.\n\n"
                f"| recipe | steps | seeds | {' | '.join(f'`{key}`' for key in MEASURED)} |\n"
                f"|---|---|---|{'---|' * len(MEASURED)}\n" + "\n".join(rows) + "\n")
    maps = json.loads((RESULTS / "dense.json").read_text())["figures"]
    if own := {kind: maps["mean_iou"][kind] for kind in kinds if kind in maps["mean_iou"]}:
        others = [f"{kind} {percent(values)}" for kind, values in maps["mean_iou"].items() if kind not in own]
        text += (f"\nMaps of street scenes after {maps['steps']} steps, mean IoU of a linear layer "
                 f"(`benchmarks/results/dense.json`): **{', '.join(percent(values) for values in own.values())}**; "
                 f"{', '.join(others)}.\n")
    return text or "Not measured yet.\n"


@cache
def content(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def percent(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f} %"


def with_links(markdown: str) -> str:
    """The names of methods in the first cells of tables as links to their pages."""
    pages = {one.name: file for file in method_files() for one in classes(file)}

    def linked(row: re.Match[str]) -> str:
        return re.sub(r"`(\w+)`", lambda name: f"[{name[0]}](methods/{pages[name[1]]}.md)" if name[1] in pages
                      else name[0], row[0])
    return re.sub(r"(?m)^\|[^|]*`[^|]*\|", linked, markdown)


if __name__ == "__main__":
    print(method_page(sys.argv[1]))
