"""Kornia's augmentations at the end of a row: draws of the key alone, on the views' device, and what is refused."""

import copy
import pickle
import random

import kornia.augmentation as K
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ssl_zoo.cli import run
from ssl_zoo.methods import PixContrast, PixPro
from ssl_zoo.views import Augmentation, Canvases, Key, ViewSpec
from ssl_zoo.views.kornia_ops import Extra
from tests.conftest import same, simclr, small, state, trainer

KEY = Key(seed=7, epoch=3, batch=11, rank=1)
INTENSITY = {
    "RandomErasing": {}, "RandomGamma": {"gamma": [0.5, 1.5]}, "RandomPosterize": {"bits": 3}, "RandomEqualize": {},
    "RandomClahe": {}, "RandomPlanckianJitter": {}, "RandomGaussianNoise": {"std": 0.1},
    "RandomMotionBlur": {"kernel_size": 5, "angle": 30.0, "direction": 0.5}, "RandomChannelShuffle": {},
    "RandomInvert": {}, "RandomJPEG": {"jpeg_quality": [20.0, 60.0]}, "RandomAutoContrast": {},
    "RandomSaltAndPepperNoise": {}, "RandomPlasmaShadow": {},
}
GEOMETRIC = {
    "RandomRotation": {"degrees": 20.0}, "RandomPerspective": {}, "RandomElasticTransform": {},
    "RandomAffine": {"degrees": 10.0, "translate": [0.1, 0.1]}, "RandomThinPlateSpline": {},
    "RandomShear": {"shear": 5.0},
}
OPERATIONS = INTENSITY | GEOMETRIC


def entry(name, **arguments):
    arguments = {**OPERATIONS.get(name, {}), "p": 0.6, **arguments}
    return {"class_path": f"kornia.augmentation.{name}", "init_args": arguments}


def row(*entries, **options):
    return ViewSpec(**{"size": 16, "count": 2, "jitter": 0.5, "extra": list(entries)} | options)


def noise_bytes(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def states():
    kind, words, *rest = np.random.get_state()    # noqa: NPY002
    return torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()


# Each operation, from a recipe

def recipe(folder, arrays, *rows):
    """The options of a command for a run with these rows of views."""
    whole = {
        "seed_everything": 0, "trainer": {"accelerator": "cpu", "logger": False},
        "model": {"class_path": "SimCLR", "init_args": {
            "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}},
            "augment": {"views": list(rows)},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, "schedule": {}}},
        "data": {"class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole))
    return ["--config", str(folder / "recipe.yaml")]


@pytest.mark.filterwarnings("error:.*accepts any value")     # which a later jsonargparse will not build
def test_a_preview_of_a_recipe_shows_them(arrays, tmp_path):
    options = recipe(tmp_path, arrays, *({"size": 32, "role": "global", "extra": [entry(name)]} for name in OPERATIONS))
    run(["preview", *options, "--images", "2", "--output", str(tmp_path / "views.png")])
    with Image.open(tmp_path / "views.png") as image:
        assert image.width > len(OPERATIONS) * 160


def test_a_preview_draws_no_matches_of_what_moved(arrays, tmp_path):
    for name, matched in ("RandomRotation", False), ("RandomInvert", True):
        options = recipe(tmp_path, arrays, {"size": 16, "count": 2, "extra": [entry(name)]})
        run(["preview", *options, "--images", "1", "--output", str(tmp_path / f"{name}.png")])
        assert (tmp_path / f"{name}_matches.png").exists() == matched


@pytest.mark.parametrize(("name", "arguments", "sentence"), [
    ("RandomErazing", {}, "there is no RandomErazing in kornia.augmentation; did you mean RandomErasing"),
    ("RandomErasing", {"scales": [0, 1]}, "RandomErasing takes no scales; did you mean scale?"),
    ("RandomMixUpV2", {}, "RandomMixUpV2 mixes the images of a batch"),
])
def test_a_recipe_with_a_wrong_entry_gets_one_sentence(arrays, tmp_path, name, arguments, sentence):
    wrong = {"class_path": f"kornia.augmentation.{name}", "init_args": arguments}
    options = recipe(tmp_path, arrays, {"size": 16, "count": 2, "extra": [wrong]})
    with pytest.raises(SystemExit, match=sentence) as refused:
        run(["fit", *options])
    assert len(str(refused.value.code).splitlines()) == 2     # and how to see the traceback


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_a_function_of_the_key_and_gives_views(name):
    augmentation, images = Augmentation([row(entry(name))]), noise_bytes(12, 3, 24, 30)
    plain, before = Augmentation([row()])(images, KEY), states()
    views = augmentation(images, KEY)
    assert states() == before
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again = augmentation(images, KEY)
    for view, other, bare, next_batch in zip(views, again, plain, augmentation(images, KEY._replace(batch=12)),
                                             strict=True):
        assert torch.equal(view.images, other.images)
        assert not torch.equal(view.images, next_batch.images)
        assert torch.equal(view.boxes, bare.boxes)                      # what comes before is drawn as without it
        changed = (view.images != bare.images).flatten(1).any(1)
        assert changed.any()
        assert not changed.all() or name == "RandomElasticTransform"
        assert view.images.isfinite().all()
        assert 0 <= view.images.min() <= view.images.max() <= 1
        assert view.images.shape == (12, 3, 16, 16)
        assert view.moved == (name in GEOMETRIC)


@pytest.mark.parametrize("part", Key._fields)
def test_each_part_of_the_key_and_each_row_has_draws_of_its_own(part):
    still = row(entry("RandomErasing", p=1.0), jitter=0.0, flip=0.0, scale=(1, 1), ratio=(1, 1))
    images = torch.full((8, 3, 16, 16), 200, dtype=torch.uint8)
    first, second, third, fourth = Augmentation([still, still])(images, KEY)
    other = Augmentation([still])(images, KEY._replace(**{part: 99}))[0]
    for one in second, third, fourth, other:
        assert not torch.equal(first.images, one.images)


# Wherever the views come from

def test_crops_from_workers_canvases_and_memory_get_the_same_extra():
    augmentation = Augmentation([row(entry("RandomInvert", p=0.5), size=80)])
    images = noise_bytes(6, 3, 96, 110)
    memory = augmentation(images, KEY)
    workers = augmentation(augmentation.cut(list(images), KEY), KEY)
    canvases = augmentation(Canvases(torch.nn.functional.pad(images, (0, 18, 0, 32)), np.array([[96, 110]] * 6)), KEY)
    for view, others in zip(memory, zip(workers, canvases, strict=True), strict=True):
        for other in others:
            assert (view.images - other.images).abs().max() < 1.5 / 255


@pytest.mark.parametrize("options", [{"dtype": "bfloat16", "channels_last": True}, {"compile": True}])
def test_extra_comes_before_the_cast_and_outside_the_compiled_part(options):
    rows, images = [row(entry("RandomErasing"), entry("RandomGamma"))], noise_bytes(6, 3, 20, 20)
    plain = Augmentation(rows)(images, KEY)
    with torch.compiler.set_stance("force_eager"):
        views = Augmentation(rows, **options)(images, KEY)
    for view, other in zip(views, plain, strict=True):
        assert torch.allclose(view.images.float(), other.images, atol=0.005 if "dtype" in options else 1e-4)
        assert view.images.is_contiguous(memory_format=torch.channels_last) == options.get("channels_last", False)


class Constants(TorchFunctionMode):
    """torch.tensor starts the driver before a fake mode sees it: make constants on the host and move them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        return function(*args, **kwargs)


# RandomJPEG's tables need a real stream, on which Kornia waits once for each device and dtype
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "RandomJPEG"])
def test_a_gpu_gets_the_draws_of_the_cpu_and_gives_nothing_back(name):
    """Kornia draws on the host, then the images, which are not there, are changed: reading one back would raise."""
    module, = Extra([entry(name)], 16).modules
    drawn = module.forward_parameters(torch.Size((4, 3, 16, 16)))
    assert all(value.device.type == "cpu" for value in drawn.values() if isinstance(value, torch.Tensor))
    cudnn = torch.backends.cudnn.flags(enabled=False)      # its grid_sample has no fake kernel
    with FakeTensorMode(allow_non_fake_inputs=True), Constants(), cudnn:
        changed = module(torch.empty(4, 3, 16, 16, device="cuda"), params=drawn)
    assert changed.device.type == "cuda"


def test_an_augmentation_that_has_drawn_travels_to_workers_and_keeps_no_batch():
    augmentation, images = Augmentation([row(entry("RandomAffine"), entry("RandomErasing"))]), noise_bytes(4, 3, 20, 20)
    fresh = len(pickle.dumps(augmentation))
    views = augmentation(images, KEY)
    assert len(pickle.dumps(augmentation)) == fresh
    for other in pickle.loads(pickle.dumps(augmentation)), copy.deepcopy(augmentation):
        assert all(torch.equal(a.images, b.images) for a, b in zip(views, other(images, KEY), strict=True))


def test_a_run_with_extra_resumes_in_mid_epoch_bit_for_bit(data, tmp_path):
    def fit(folder, **options):
        method = simclr(augment=Augmentation([row(entry("RandomErasing"), entry("RandomElasticTransform"))]))
        torch.manual_seed(len(options))                    # another global state, which must not count
        saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        trainer(folder, saving, enable_checkpointing=True, limit_val_batches=0).fit(method, datamodule=data, **options)
        return state(method)

    whole = fit(tmp_path / "whole")
    assert same(fit(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=3.ckpt"), whole)


def test_no_module_of_kornia_is_part_of_the_method():
    method = simclr(augment=Augmentation([row(entry("RandomErasing"))]))
    assert not [module for module in method.modules() if isinstance(module, K.AugmentationBase2D)]


def test_a_row_takes_objects_too():
    images = noise_bytes(6, 3, 20, 20)
    named, built = (Augmentation([row(one)])(images, KEY) for one in (entry("RandomErasing", p=0.3),
                                                                     K.RandomErasing(p=0.3)))
    assert all(torch.equal(a.images, b.images) for a, b in zip(named, built, strict=True))


# What is refused

@pytest.mark.parametrize(("extra", "sentence"), [
    ({"class_path": "kornia.augmentation.RandomErazing"},
     "there is no RandomErazing in kornia.augmentation; did you mean RandomErasing"),
    ({"class_path": "korna.augmentation.RandomErasing"}, "korna.augmentation.RandomErasing cannot be imported"),
    ({"class_path": "kornia.augmentation.RandomErasing", "init_args": {"scales": [0, 1]}},
     "RandomErasing takes no scales; did you mean scale?"),
    ({"class_path": "kornia.augmentation.RandomErasing", "init_args": {"scale": 3}},
     "RandomErasing does not take these arguments"),
    (entry("RandomMixUpV2"), "RandomMixUpV2 mixes the images of a batch"),
    (entry("RandomCutMixV2"), "RandomCutMixV2 mixes the images of a batch"),
    (entry("RandomMosaic"), "RandomMosaic mixes the images of a batch"),
    (entry("RandomJigsaw"), "RandomJigsaw mixes"),
    (entry("Normalize", mean=0.5, std=0.5), "Normalize cannot be in extra, for normalisation is the encoder's first"),
    ({"class_path": "kornia.augmentation.AugmentationSequential"}, "AugmentationSequential is not one"),
    ({"class_path": "torch.nn.Identity"}, "subclasses of kornia.augmentation.AugmentationBase2D, and Identity is not"),
    (torch.nn.Identity(), "and Identity is not one"),
    (entry("RandomCrop", size=[8, 8]), "RandomCrop makes views of 8 x 8 pixels out of 16 x 16"),
    (entry("Resize", size=[8, 8]), "Resize makes views of 8 x 8 pixels"),
    ("RandomErasing", "an entry of extra is a class_path and its init_args"),
])
def test_what_can_be_no_part_of_a_row_is_refused_in_a_sentence(extra, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmentation([row(extra)])


def test_an_operation_that_keeps_the_size_may_crop():
    view, _ = Augmentation([row(entry("RandomCrop", size=[16, 16], padding=2))])(noise_bytes(4, 3, 20, 20), KEY)
    assert view.moved
    assert view.images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("method", [PixPro, PixContrast])
def test_methods_that_compare_places_refuse_what_moves_pixels(method):
    with pytest.raises(ValueError, match=f"{method.__name__} compares the same places .* and RandomRotation moves"):
        small(method, row(entry("RandomErasing"), entry("RandomRotation")), projector=(8, 8))
    small(method, row(entry("RandomErasing")), projector=(8, 8))
