"""Run notebooks as they are committed, and keep what they print and show, small, for readers on the web.

    python -m tests.notebooks [NAME ...]        run notebooks/NAME.ipynb, or all, and write their outputs into them

A notebook remembers the code that made its outputs; the tests tell where the two no longer belong together.
"""

import base64
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 1800          # for a cell, against hangs
WIDEST = 760            # pixels of a picture that is kept
FEW = 5000              # colours, of a picture that a palette serves


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook):
    """Of the code alone: text around it may be mended without another run."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()[:16]


def execute(name, folder):
    """The notebook after its run in `folder`, by this environment's Python, whatever the machine calls python3."""
    notebook, kernel = read(name), folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3"}))
    before = dict(os.environ)
    os.environ |= {"JUPYTER_PATH": str(folder), "IPYTHONDIR": str(folder / "ipython"),    # or it writes into the home
                   "COLUMNS": "110"}
    try:
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=SECONDS,
                                resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return notebook


def small(notebook):
    """The notebook with outputs worth a commit: no progress bars, no numbers of runs, pictures of moderate size."""
    for cell in code(notebook):
        cell.metadata, cell.execution_count = {}, None
        cell.outputs = [kept(one) for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}, "outputs_of": fingerprint(notebook)}
    return notebook


def kept(output):
    if "execution_count" in output:
        output.execution_count = None
    output.metadata = {} if "metadata" in output else None
    if output.metadata is None:
        del output["metadata"]
    if "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data.pop("image/png")))).convert("RGB")
        picture.thumbnail((WIDEST, 10 ** 5))
        save = io.BytesIO()
        if picture.getcolors(FEW):          # a chart; of photographs a palette makes posters
            picture.quantize(128).save(save, "PNG", optimize=True)
        else:
            picture.save(save, "JPEG", quality=80)
        kind = "image/png" if picture.getcolors(FEW) else "image/jpeg"
        output.data = {kind: base64.b64encode(save.getvalue()).decode(), "text/plain": "<picture>"}
    return output


if __name__ == "__main__":
    for one in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(small(execute(one, Path(place))), FOLDER / f"{one}.ipynb")
        print(one, (FOLDER / f"{one}.ipynb").stat().st_size // 1000, "kB")
