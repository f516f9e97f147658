"""The notebooks run as they are committed, show pictures, define nothing, and hold the small outputs of such a run."""

import ast
import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nbformat", reason="notebooks are run by the extra dev")
pytest.importorskip("nbclient", reason="notebooks are run by the extra dev")
pytest.importorskip("ipykernel", reason="notebooks are run by the extra dev")
from tests.notebooks import FOLDER, code, execute, fingerprint, read, small  # noqa: E402

NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PICTURES = {"compare": 1, "encoder": 3, "first_run": 8, "own_method": 1, "views": 6}     # at least
LARGEST = 1_000_000      # bytes of a notebook


def printed(notebook):
    return "".join(output.text for cell in code(notebook) for output in cell.outputs if output.output_type == "stream")


def pictures(cell):
    return [Image.open(io.BytesIO(base64.b64decode(text))) for output in cell.outputs
            for kind, text in output.get("data", {}).items() if kind.startswith("image/")]


def kinds(notebook):
    """By cell, what it puts out: text, pictures and values."""
    return [[*dict.fromkeys("picture" if "<picture>" in str(output.get("data")) else output.output_type
                            for output in cell.outputs)] for cell in code(notebook)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook after its run in a folder of its own, each run once."""
    done = {}

    def run(name):
        if name not in done:
            before = sorted(FOLDER.rglob("*"))
            done[name] = small(execute(name, tmp_path_factory.mktemp(name)))
            assert sorted(FOLDER.rglob("*")) == before
        return done[name]

    return run


def test_the_notebooks_are_found():
    assert list(PICTURES) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_with_small_outputs_of_its_own_code(name):
    notebook = read(name)
    assert notebook.metadata["outputs_of"] == fingerprint(notebook), f"python -m tests.notebooks {name}"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    assert sum(len(pictures(cell)) for cell in code(notebook)) >= PICTURES[name]
    assert not any(output.get("name") == "stderr" for cell in code(notebook) for output in cell.outputs)
    assert not re.search(r"/home/|/root/|/tmp/|/work/|site-packages", printed(notebook))


def test_outputs_of_other_code_are_told():
    notebook = read("views")
    code(notebook)[-1].source += "\nprint(1)"
    assert notebook.metadata["outputs_of"] != fingerprint(notebook)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_and_defines_nothing(name):
    """But for a file that a reader is shown how to write."""
    for cell in code(read(name)):
        python = re.sub("^%%.*", "", cell.source)
        defined = [node for node in ast.walk(ast.parse("" if cell.source.startswith("%%writefile") else python))
                   if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        assert not defined, f"{defined[0].name} belongs in the package"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_and_every_picture_shows_something(name, executed):
    notebook = executed(name)
    assert kinds(notebook) == kinds(read(name)), f"python -m tests.notebooks {name}"
    shown = [picture for cell in code(notebook) for picture in pictures(cell)]
    assert len(shown) >= PICTURES[name]
    for picture in shown:
        pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) >= 80
        assert pixels.reshape(-1, 3).std(0).max() > 10, "this picture is blank"


def test_the_views_are_what_their_notebook_says(executed):
    text = printed(executed("views"))
    assert "same key, same pixels: True" in text
    assert "next epoch, same pixels: False" in text
    assert "same boxes: True" in text
    assert 0 < float(re.search(r"largest difference, levels of 255: ([\d.]+)", text)[1]) < 1
    assert float(re.search(r"largest difference from torch's: ([\d.e+-]+)", text)[1]) < 1e-5


def test_the_first_run_learns_and_its_encoder_is_the_one_exported(executed):
    text = printed(executed("first_run"))
    for protocol in ("knn_dino", "linear_cached"):
        untrained, *_, trained = map(float, re.findall(r"([\d.]+) %", re.search(rf"(?m)^{protocol} .*%", text)[0])[1:])
        assert trained > untrained + 5
    assert "the features of the run: True" in text
    few = [float(share) for share in re.findall(r"([\d.]+)% of the test patches", text)]
    assert few[1] > few[0] + 5


def test_four_methods_are_compared_by_the_same_steps_and_seeds(executed):
    text = printed(executed("compare"))
    assert text.count("learns: nearest_class_mean") >= 2      # of 8 runs; each is too short to be certain
    assert all(re.search(rf"(?m)^{name} .*%", text) for name in ("simclr", "dcl", "moco", "swav"))


def test_the_contract_finds_what_is_wrong_and_passes_what_was_mended(executed):
    text = printed(executed("own_method"))
    assert "FAILED  processes" in text
    assert "1 of 2 checks failed" in text
    mended = text.rpartition("1 of 2 checks failed")[2]
    assert re.findall(r"(?m)^ok +(\w+)", mended) == ["gradients", "processes"]


def test_an_encoder_finds_pieces_of_the_same_photograph_and_comes_back_from_its_file(executed):
    text = printed(executed("encoder"))
    assert int(re.search(r"(\d+)% of the pieces", text)[1]) > 90
    assert "the same features: True" in text
