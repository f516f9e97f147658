"""What some rows draw of four small images. tests/test_golden_views.py compares it with views.npz, of c7a8131.

To write that file again: `PYTHONPATH=<a checkout> python tests/golden/views.py`, only for a change that is meant to
change draws.
"""

from pathlib import Path

import numpy as np
import torch

from ssl_zoo.views import PRESETS, Augmentation, Key, ViewSpec

FILE = Path(__file__).with_suffix(".npz")
KEYS = Key(0, 0, 0, 0), Key(7, 3, 11, 1)
SIZES = np.array([(40, 56), (101, 33), (64, 64), (23, 200)])
LIVELY = {"size": 40, "count": 3, "role": "global", "scale": (0.2, 0.9), "ratio": (0.5, 2.0),
          "interpolation": "bicubic", "flip": 0.3, "vertical_flip": 0.6, "jitter": 0.9, "strength": 0.7,
          "brightness": 0.5, "contrast": 0.6, "saturation": 0.7, "hue": 0.3, "gray": 0.3, "blur": 0.6,
          "sigma": (0.2, 3.0), "kernel": 7, "solarize": 0.4, "threshold": 0.6}
ROWS = {name: list(rows) for name, rows in PRESETS.items()} | {
    "lively": [ViewSpec(**LIVELY), ViewSpec(24, 2, "local", overlap=0.5, jitter=0.5, blur=0.5)],
    "clean first": [ViewSpec(24, clean=True), ViewSpec(72, 2, overlap=0.2, jitter=0.8, gray=0.2, solarize=0.2)],
}
OLD = {"crop": slice(0, 4), "flips": slice(4, 6), "jittered": 6, "factors": slice(7, 11), "order": slice(11, 15),
       "gray": 15, "sigma": 16, "solarized": 17}   # the columns of a table at c7a8131


def pictures():
    generator, images = np.random.default_rng(5), []
    for rows, columns in SIZES:
        y, x = np.mgrid[:rows, :columns]
        slow = np.stack([x * 3 + y * 2, x * y, 255 - x * 2])
        images.append(torch.from_numpy((slow + generator.integers(0, 64, slow.shape)).astype(np.uint8)))
    return images


def columns(table):
    """The numbers of a table by the names of OLD."""
    if table.dtype.names is None:
        return {name: table[..., place] for name, place in OLD.items()}
    jitter = table["jitter"]
    return {"crop": table["crop"], "flips": table["flips"], "jittered": jitter["applied"], "factors": jitter["factors"],
            "order": jitter["order"], "gray": table["gray"]["applied"], "sigma": table["blur"]["sigma"],
            "solarized": table["solarize"]["applied"]}


def drawn(name, key):
    """Every number of the tables of some rows."""
    return {f"{name}, key {KEYS.index(key)}, row {i}, {column}": numbers
            for i, table in enumerate(Augmentation(ROWS[name]).draw(SIZES, key))
            for column, numbers in columns(table).items()}


def seen(name, key):
    """Nine pixels, the mean and the mean square of each view, and its places: cut on the device, and by a worker."""
    augmentation, images, found = Augmentation(ROWS[name]), pictures(), {}
    alike = torch.stack([image[:, :23, :33] for image in images])
    for way, batch in ("device", alike), ("worker", augmentation.cut(images, key)):
        for i, view in enumerate(augmentation(batch, key)):
            pixels = view.images.flatten(1)
            some = pixels[:, ::max(1, pixels.shape[1] // 9)][:, :9]
            found[f"{name}, {way}, view {i}"] = torch.cat(
                [some, pixels.mean(1, keepdim=True), pixels.square().mean(1, keepdim=True), view.boxes, view.flipped], 1
            ).numpy()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    everything = {}
    for rows in ROWS:
        everything |= drawn(rows, KEYS[0]) | drawn(rows, KEYS[1]) | seen(rows, KEYS[1])
    np.savez_compressed(FILE, **everything)
