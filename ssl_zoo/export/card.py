"""A model card: Markdown with the front matter of Hugging Face's hub, of what an export's description says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.paths import mapping

LIBRARIES = {".safetensors": "ssl_zoo", ".onnx": "onnx", ".pt2": "pytorch"}   # of a .pth, the one that it is for


def text(said: Mapping[str, Any], name: str, program: str) -> str:
    """The card of the file `name`.

    Args:
        said: its description.
        program: lines of Python that use it.
    """
    method = of(said, "recipe", "model", "class_path").rpartition(".")[2]
    front = {"license": said["license"] or "unknown",
             "library_name": said.get("library", LIBRARIES.get(Path(name).suffix)),
             "pipeline_tag": "image-feature-extraction",
             "tags": ["self-supervised-learning", *([method.lower()] if method else []), "ssl_zoo"]}
    parts = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", "",
             f"{architecture(said)}{f', pretrained by {method}' if method else ''}.", "", "## Use", "",
             f"`images` are uint8 [B, {said['preprocessing']['channels']}, H, W].", "", "```python", program.strip(),
             "```", "", "## Images", "", *images(said["preprocessing"]), "", "## Training", "", *training(said), "",
             "## Numbers", "", *numbers(said), *whole_recipe(said)]
    return "\n".join(parts) + "\n"


def of(tree: Any, *names: str) -> str:
    """A value in dictionaries of dictionaries as text, empty where there is none."""
    for name in names[:-1]:
        tree = mapping(tree, name)
    value = tree.get(names[-1]) if isinstance(tree, Mapping) else None
    return "" if value is None else str(value)


def architecture(said: Mapping[str, Any]) -> str:
    known = said["architecture"]
    options = ", ".join(f"{name} {value}" for name, value in known["arguments"].items()
                        if name not in ("mean", "std") and value is not None)
    return f"{known['class']}{f' ({options})' if options else ''} with {known['dim']} features of an image"


def images(known: Mapping[str, Any]) -> Iterator[str]:
    """How images are to be prepared, as far as it is recorded."""
    labels = {"input": "input", "channels": "channels", "levels": "black and white in files of more than 8 bits",
              "background": "behind transparent pixels", "resize": "resize before", "crop": "crop before",
              "size": "side in pixels", "sizes": "sizes that the file takes", "normalisation": "normalisation",
              "mean": "mean, of images in [0, 1]", "std": "standard deviation"}
    for name, label in labels.items():
        unknown = "not recorded" if name in ("resize", "crop", "size") else None
        if (value := known.get(name, unknown)) is not None or unknown:
            yield f"- {label}: {unknown if value is None else value}"


def training(said: Mapping[str, Any]) -> Iterator[str]:
    """Where the weights come from; what nobody has recorded is said to be unknown."""
    made = mapping(said, "provenance") if said["recipe"] else {}   # else that of the export alone
    data = mapping(made, "data") or {"class": of(said, "recipe", "data", "class_path").rpartition(".")[2]}
    parts = [f"; {part['images']:,} images {word} (fingerprint {part['fingerprint']})" for name, word in
             (("train", "to train on"), ("test", "to test on")) if (part := mapping(data, name))]
    yield f"- data: {' '.join(filter(None, (of(data, 'class'), of(data, 'root')))) or 'unknown'}{''.join(parts)}"
    if said["weights"]:
        yield f"- weights{' to start from' * bool(said['recipe'])}: {said['weights']}"
    yield f"- seed: {of(made, 'seed') or 'unknown'}"
    yield f"- code: {code(made)}"
    packages = ", ".join(f"{name} {version}" for name, version in mapping(made, "packages").items())
    yield f"- packages: {packages or 'unknown'}"
    yield f"- command: {of(made, 'command') or 'unknown'}"
    yield f"- date: {of(made, 'date') or 'unknown'}"
    machine = mapping(made, "machine")
    yield f"- machine: {of(machine, 'gpu') or of(machine, 'cpu') or 'unknown'}"
    yield f"- fingerprint of architecture and weights: {said['fingerprint']}"
    exported = said["exported"]
    yield f"- exported: {exported['date']}, {code(exported)}, {exported['command']}"


def code(made: Mapping[str, Any]) -> str:
    """Version, commit and state of ssl_zoo."""
    known = mapping(made, "ssl_zoo")
    if not known:
        return "unknown"
    changed = ", with changes that are not committed" * (known.get("clean") is False)
    return f"ssl_zoo {known.get('version')}, commit {known.get('commit') or 'unknown'}{changed}"


def numbers(said: Mapping[str, Any]) -> Iterator[str]:
    if not said["metrics"]:
        yield "None are recorded; `ssl-zoo evaluate` measures them."
        return
    yield "| name | value | protocol |"
    yield "|---|---:|---|"
    for name, value in said["metrics"].items():
        yield f"| `{name}` | {value:.4g} | {said['protocols'].get(name, '')} |"


def whole_recipe(said: Mapping[str, Any]) -> Iterator[str]:
    if recipe := said.get("recipe"):
        yield from ("", "## Recipe", "", "```yaml", yaml.safe_dump(plain(recipe), sort_keys=False).strip(), "```")


def plain(value: Any) -> Any:
    """Values that YAML has a form for; all others as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
