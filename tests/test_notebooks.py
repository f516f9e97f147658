"""The notebooks run as they are committed, show pictures, and define nothing."""

import ast
import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="notebooks are run by the extra dev")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run by the extra dev")
pytest.importorskip("ipykernel", reason="notebooks are run by the extra dev")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECONDS = 1800   # for a cell, against hangs


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.text for cell in code(notebook) for output in cell.outputs if output.output_type == "stream")


def pictures(cell):
    return [Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) for output in cell.outputs
            if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook after its run in a folder of its own, each run once."""
    done = {}

    def execute(name):
        if name not in done:
            folder, notebook = tmp_path_factory.mktemp(name), read(name)
            kernel = folder / "kernels" / "python3"     # this environment's, whatever the machine has under that name
            kernel.mkdir(parents=True)
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name}))
            before = sorted(FOLDER.rglob("*"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("JUPYTER_PATH", str(folder))
                patch.setenv("IPYTHONDIR", str(folder / "ipython"))      # or it writes a history into the home
                nbclient.NotebookClient(notebook, kernel_name="python3", timeout=SECONDS,
                                        resources={"metadata": {"path": str(folder)}}).execute()
            assert sorted(FOLDER.rglob("*")) == before
            done[name] = notebook
        return done[name]

    return execute


def test_the_notebooks_are_found():
    assert NOTEBOOKS == ["first_run", "views"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name):
    for cell in code(read(name)):
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_and_defines_nothing(name):
    for cell in code(read(name)):
        defined = [node for node in ast.walk(ast.parse(cell.source))
                   if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        assert not defined, f"{defined[0].name} belongs in the package"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_and_every_picture_shows_something(name, executed):
    cells = [cell for cell in code(executed(name)) if re.search(r"(sheet|open|subplots)\(", cell.source)]
    assert len(cells) >= 5
    for cell in cells:
        picture, = pictures(cell)
        pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) >= 100
        assert pixels.reshape(-1, 3).std(0).max() > 10, f"this picture is blank: {cell.source}"


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
