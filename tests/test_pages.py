"""The pages that benchmarks/pages.py makes for the site say what docstrings, recipes and records say."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_zoo import methods

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("pages", ROOT / "benchmarks/pages.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
FILES = pages.method_files()


def test_every_method_has_a_page():
    found = {one.name for file in FILES for one in pages.classes(file)}
    assert found == {name for name in dir(methods) if isinstance(getattr(methods, name), type)}


@pytest.mark.parametrize("file", FILES)
def test_a_page_has_idea_equation_recipes_and_traps(file):
    text = pages.method_page(file)
    for one in pages.classes(file):
        assert getattr(methods, one.name).__doc__.startswith(one.idea)
        assert one.idea in text
    assert re.search(r"## Equation\n\n```math\n.+\n```", text, re.DOTALL)
    assert re.search(r"## Traps\n\n- ", text)
    assert "| `cifar10/" in text
    assert all(recipe in pages.shipped() for recipe in re.findall(r"`((?:cifar10|folder|imagenet)/\w+)`", text))


def test_measured_numbers_are_those_of_the_record():
    one = json.loads((ROOT / "benchmarks/results/methods.json").read_text())["figures"]["methods"]["swav"]["knn_dino"]
    untrained, trained = (100 * sum(one[when]) / len(one[when]) for when in ("untrained", "trained"))
    assert f"{untrained:.1f} % → **{trained:.1f} %**" in pages.method_page("swav")


def test_a_method_without_an_entry_is_warned_of(monkeypatch, caplog):
    known = pages.content(ROOT / "docs/methods.yaml")
    monkeypatch.delitem(known, "swav")
    assert "## Equation" not in pages.method_page("swav")
    assert "docs/methods.yaml says nothing of ssl_zoo/methods/swav.py" in caplog.text


def test_the_home_page_is_the_readme_with_links_within_the_site():
    home = pages.generated()["index.md"]
    assert home.startswith("# ssl_zoo")
    assert "](docs/" not in home
    assert "](contributing.md)" in home


def test_pages_that_the_navigation_leaves_out_come_last():
    listed = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    config = SimpleNamespace(mdx_configs={}, nav=[{"Methods": ["methods.md"]}, {"Use": listed[1:]}])
    pages.on_config(config)
    assert config.nav[-1] == {"More": listed[:1]}
    assert {"SwAV": "methods/swav.md"} in config.nav[0]["Methods"]


def test_names_in_the_table_of_methods_lead_to_their_pages():
    assert pages.with_links("| `DCL`, `DCLW` | `MoCo` |\n") == \
        "| [`DCL`](methods/dcl.md), [`DCLW`](methods/dcl.md) | `MoCo` |\n"


def test_warnings_end_the_build():
    """With --quiet mkdocs drops them before --strict counts them."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line)
    assert "--strict" in line
    assert "quiet" not in line
    assert "make docs" in (ROOT / ".ci/run").read_text().splitlines()
