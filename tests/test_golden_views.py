"""A recipe draws what it drew at c7a8131: the same tables to the bit, and the same views to a millionth.

A new operation, which touches two files, changes nothing in that.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.views import FILE, KEYS, ROWS, drawn, seen


@pytest.fixture(scope="module")
def before():
    return np.load(FILE)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("key", KEYS)
def test_tables_are_those_of_before_bit_for_bit(before, name, key):
    for column, numbers in drawn(name, key).items():
        assert np.array_equal(numbers, before[column]), column


@pytest.mark.parametrize("name", ROWS)
def test_views_are_those_of_before(before, name):
    for view, numbers in seen(name, KEYS[1]).items():
        assert np.abs(numbers - before[view]).max() < 1e-6, view


# What a new operation touches

SPECS = ("    solarize: float = 0.0\n", "    solarize: float = 0.0\n    posterize: float = 0.0\n")
POSTERIZE = '''class Posterize(Operation):
    """Keep three bits of each channel."""

    name = "posterize"
    even = columns = np.dtype([("applied", "f4")])

    def draw(self, spec, even, columns):
        columns["applied"] = even["applied"] < spec.posterize

    def change(self, images, columns, spec):
        return images.mul(255).div(32, rounding_mode="floor").mul(32 / 255)

    def change_all(self, images, numbers, spec):
        return torch.where(colour.per_image(numbers) > 0, self.change(images, None, spec), images)


OPERATIONS: tuple[Operation, ...] = (Posterize(), '''
SCRIPT = '''
import numpy as np, torch
from ssl_zoo.views import Augmentation, Key, ViewSpec
from tests.golden.views import FILE, KEYS, ROWS, drawn
before = np.load(FILE)
for name in ROWS:
    for column, numbers in drawn(name, KEYS[1]).items():
        assert np.array_equal(numbers, before[column]), column
images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(40, 3, -1, -1).contiguous()
rows = [ViewSpec(16, posterize=0.5, scale=(1, 1), ratio=(1, 1), flip=0)]
view, = Augmentation(rows)(images, KEYS[0])
levels = torch.tensor([image.unique().numel() for image in view.images])
assert sorted(set(levels.tolist())) == [8, 256] and 8 < (levels == 8).sum() < 32
with torch.compiler.set_stance("force_eager"):
    dense, = Augmentation(rows, compile=True)(images, KEYS[0])
augmentation = Augmentation(rows)
cut, = augmentation(augmentation.cut(list(images), KEYS[0]), KEYS[0])
assert torch.allclose(view.images, dense.images, atol=1e-6) and torch.allclose(view.images, cut.images, atol=1e-6)
'''


def test_a_new_operation_is_a_field_in_specs_and_a_class_in_operations_and_changes_no_draw(tmp_path):
    """A copy of the package, changed in these two files alone, posterises by all ways and draws what it drew."""
    root = Path(__file__).parents[1]
    for folder in "ssl_zoo", "tests":
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in (("specs", *SPECS), ("operations", "OPERATIONS: tuple[Operation, ...] = (", POSTERIZE)):
        path = tmp_path / "ssl_zoo" / "views" / f"{file}.py"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
