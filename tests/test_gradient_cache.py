"""Steps whose encoder gets a few images at a time, against plain ones: losses, gradients, statistics, whole runs."""

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ssl_zoo import cli
from ssl_zoo.contract import runs
from ssl_zoo.contract.gloo import without_norms
from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import Encoder
from ssl_zoo.gradient_cache import GradientCache, Parts, entrances
from ssl_zoo.methods import MoCo
from tests.conftest import TWO_VIEWS, same, simclr, small, state, trainer
from tests.test_contract import CASES
from tests.test_several import OfAll, as_a_cluster_would

ONCE = [name for name in CASES if not {",", "over"} & {*name.replace(",", " ,").split()}]      # each class as it is
ONCE += ["SwAV, multi-crop with queue", "MoCo, symmetric with splits", "SimCLR, judged"]


def one_image_at_a_time(method):
    """The method in float64, with norms in its encoders that do not look at other images."""
    for encoder in [one for one in method.modules() if isinstance(one, Encoder)]:
        for name, module in [*encoder.named_modules()]:
            if isinstance(module, nn.BatchNorm2d):
                encoder.set_submodule(name, nn.GroupNorm(1, module.num_features))
    return method.double()


def loss_of(method, batch, images=None):
    """The loss of a batch, whose images the encoder takes so many at a time, before its backward pass."""
    ways = [] if images is None else entrances(method, images)
    for way in ways:
        way.narrow()
    loss = method.training_loss(batch)
    for way in ways:
        way.widen()
    assert images is None or any(way.parts.used for way in ways if way.parts.encoder is method.encoder)
    return loss


def step(method, images=None):
    """The loss of a batch of 8, all gradients, and all buffers after it."""
    loss = loss_of(method, next(runs.batches(method)), images)
    loss.backward()
    return [loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None), *method.buffers()]


def alike(found, expected, atol=1e-10):
    return len(found) == len(expected) and all(
        torch.allclose(one, other, rtol=1e-7, atol=atol, equal_nan=True)
        for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ONCE)
def test_every_method_has_the_loss_and_gradients_of_the_plain_step(name):
    plain, cached = (one_image_at_a_time(runs.seeded(CASES[name])) for _ in range(2))
    assert alike(step(cached, images=5), step(plain))


@pytest.mark.parametrize("images", [2, 3, 7])
def test_parts_may_be_of_any_size(images):
    plain, cached = (one_image_at_a_time(simclr()) for _ in range(2))
    assert alike(step(cached, images), step(plain))


def test_an_encoder_never_sees_more_images_at_once():
    method, seen = simclr(), []
    method.encoder.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    step(method, images=3)
    assert sorted(seen) == [2] * 4 + [3] * 8      # two views, in the forward pass and in the backward one


def test_what_is_kept_for_the_backward_pass_does_not_depend_on_the_encoder():
    def kept(width, images=None):
        method = simclr()
        method.encoder.backbone.conv1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))
        bytes_of = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: bytes_of.update({x.data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x):
            loss_of(method, next(runs.batches(method)), images)
        weights = sum(p.numel() * 4 for p in method.encoder.parameters())
        return sum(bytes_of.values()) - weights
    assert kept(64) > 2 * kept(4)
    assert kept(64, images=4) <= kept(4, images=4)


def test_batch_norm_sees_each_few_images_once():
    method = simclr()
    alone, batch = copy.deepcopy(method.encoder), next(runs.batches(method))
    loss = loss_of(method, batch, images=4)
    for view in batch.views:
        for images in view.images.split(4):
            alone(images)
    for moment in ("forward", "backward"):
        assert same(state(method.encoder), state(alone)), moment
        if moment == "forward":
            loss.backward()


def test_keys_in_groups_have_the_statistics_of_groups_of_each_few_images():
    method = runs.seeded(lambda: small(MoCo, projector=(16, 8), queue=20, splits=2)).double()
    average, batch = copy.deepcopy(method.momentum_encoder.average), next(runs.batches(method))
    way, *_ = [one for one in entrances(method, 5) if one.parts.encoder is method.momentum_encoder.average[0]]
    way.narrow()
    found = method.momentum_encoder.keys(batch.views[1].images, batch.key, 2)
    expected = torch.cat([average[0](some[group::2]) for some in batch.views[1].images.split(4) for group in (0, 1)])
    expected = average[1](expected[[0, 2, 1, 3, 4, 6, 5, 7]])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_chance_is_the_same_in_both_passes():
    def gradient(images):
        torch.manual_seed(0)
        method = one_image_at_a_time(simclr())
        method.encoder.backbone.relu = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        ways, drawn = entrances(method, images), []
        method.encoder.backbone.relu[1].register_forward_hook(
            lambda module, inputs, output: drawn.append((output == 0) & (inputs[0] != 0)))
        for way in ways:
            way.narrow()
        method.training_loss(next(runs.batches(method))).backward()
        return drawn
    drawn = gradient(4)
    assert len(drawn) == 8
    assert same(drawn[:4], drawn[:3:-1])          # the backward pass begins with the last images
    assert not same(drawn[0], drawn[1])


def test_autocast_adds_the_parts_gradients_up_in_float32():
    weight = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        features = Parts(simclr().encoder, 2)(lambda some: F.linear(some, weight), torch.ones(600, 1))
    assert features.dtype == torch.bfloat16
    features.float().sum().backward()
    assert weight.grad.item() == 600              # a sum of twos in bfloat16 ends at 512


@pytest.mark.parametrize("compiled", ["in place", "around"])
def test_a_compiled_encoder_takes_a_few_images_too(compiled):
    plain, cached = (one_image_at_a_time(simclr()) for _ in range(2))
    expected = step(plain)
    if compiled == "in place":
        cached.encoder.compile(backend="aot_eager")
    else:
        cached.encoder = torch.compile(cached.encoder, backend="aot_eager")
    ways = entrances(cached, 4)
    for way in ways:
        way.narrow()
    loss = cached.training_loss(next(runs.batches(cached)))
    loss.backward()
    assert all(way.parts.used for way in ways)
    assert alike([loss.detach(), *(p.grad for p in cached.parameters() if p.grad is not None)],
                 expected[:1 + len([p for p in plain.parameters() if p.grad is not None])])


# Whole runs

def fit(folder, data, *callbacks, method=None, images=4, ckpt_path=None, **options):
    method = one_image_at_a_time(simclr()) if method is None else method
    running = trainer(folder, GradientCache(images), *callbacks, **{"precision": "64-true", "limit_val_batches": 0}
                      | options)
    data.said = True
    running.fit(method, datamodule=data, ckpt_path=ckpt_path)
    return method


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.01}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_run_has_the_weights_of_the_plain_run(tmp_path, data, options):
    plain, cached = (state(fit(tmp_path, data, images=images, **options)) for images in (None, 3))
    start = state(one_image_at_a_time(simclr()))
    for name, value in plain.items():
        assert torch.allclose(cached[name], value, rtol=0, atol=1e-9), name
    assert any((plain[name] - start[name]).abs().max() > 1e-3 for name in plain)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, data):
    def run(*more, **options):
        method = small(CASES["SwAV, multi-crop with queue"].args[0], projector=(16, 8), prototypes=6)
        pl.seed_everything(0)
        return fit(tmp_path, data, *more, method=method, precision="32-true", **options)
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=10, save_top_k=-1)
    torch.manual_seed(0)
    whole = state(run(saving, enable_checkpointing=True))
    checkpoint, = (tmp_path / "saved").glob("*step=10.ckpt")
    assert same(state(run(ckpt_path=checkpoint)), whole)


ACCUMULATED = ({"max_epochs": 1}, {"max_epochs": 1, "accumulate_grad_batches": 2})


def one_of_two(rank, folder, arrays):
    as_a_cluster_would(rank)
    data = ArrayImages(str(arrays), batch_size=4)
    return [state(fit(folder, data, method=distributed_method(), images=3, strategy="ddp", devices=2, **options))
            for options in ACCUMULATED]


def distributed_method():
    pl.seed_everything(0, verbose=False)
    return without_norms(simclr(augment=OfAll([TWO_VIEWS]))).double()


def test_two_processes_have_the_weights_of_one(two_processes, tmp_path, arrays):
    found = two_processes(one_of_two, tmp_path, arrays)
    for place, options in enumerate(ACCUMULATED):
        data = ArrayImages(str(arrays), batch_size=8)
        whole = state(fit(tmp_path, data, method=distributed_method(), images=None, **options))
        for halves in found:
            assert alike([halves[place][name] for name in whole], list(whole.values()), atol=1e-7)


def test_between_batches_a_method_is_as_it_was(tmp_path, data):
    method, seen = simclr(), []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(set(vars(pl_module.encoder)))
    before = set(vars(method.encoder))
    fit(tmp_path, data, Look(), method=method, precision="32-true", max_epochs=1)
    assert seen == [before] * 7


def test_a_failing_step_leaves_the_encoder_as_it_was(tmp_path, data, monkeypatch):
    method = simclr()
    before = set(vars(method.encoder))
    monkeypatch.setattr(method, "training_loss", lambda batch: method.encoder(batch.views[0].images).sum() / "0")
    with pytest.raises(TypeError):
        fit(tmp_path, data, method=method, precision="32-true")
    assert set(vars(method.encoder)) == before


# What cannot be done, in one sentence

@pytest.mark.parametrize("images", [1, 0, -4])
def test_fewer_than_two_images_are_refused(images):
    with pytest.raises(ValueError, match=rf"at least 2, not {images}; null takes the whole batch"):
        GradientCache(images)


def test_more_images_than_the_batch_has_are_said_once(tmp_path, data):
    with pytest.warns(UserWarning, match=r"gradient_cache.images 8 changes nothing.*raise --data.batch_size") as said:
        fit(tmp_path, data, images=8)
    assert len([one for one in said if "gradient_cache" in str(one.message)]) == 1


def test_a_module_without_an_encoder_is_refused_before_a_step(tmp_path, data):
    class Other(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)
    method = Other()
    method.layer = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="images 4 is for encoders of ssl_zoo.encoders, and Other has none"):
        fit(tmp_path, data, method=method, precision="32-true")


def test_a_compiled_step_is_refused_before_it_runs():
    method = simclr()
    method._compiler_ctx = {"compiler": "dynamo"}       # as Lightning notes of torch.compile(method)
    with pytest.raises(ValueError, match=r"compile the encoder alone, method.encoder.compile\(\)"):
        GradientCache(4).on_fit_start(None, method)


def test_an_encoder_that_changes_each_time_is_refused(tmp_path, data):
    method = simclr()
    spectral_norm(method.encoder.backbone.conv1)
    with pytest.raises(ValueError, match=r"images 4 encodes images twice, and backbone.conv1.parametrizations.weight.0"
                                         r"._[uv] of the NarrowResNet changes each time"):
        fit(tmp_path, data, method=method, precision="32-true")


def test_groups_of_keys_need_two_images_each(tmp_path, data):
    method = small(MoCo, projector=(16, 8), queue=20, splits=4)
    with pytest.raises(ValueError, match="images 6 does not make 4 groups of 2 or more keys: raise it"):
        fit(tmp_path, data, method=method, images=6, precision="32-true")


def test_the_command_line_takes_it_and_says_what_is_wrong_with_it(recipe):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.warns(UserWarning, match="gradient_cache.images 8 changes nothing"):
        cli.run(["fit", "--config", "recipe.yaml", "--trainer.fast_dev_run", "1", "--gradient_cache.images", "8"])
    with pytest.raises(SystemExit, match="at least 2, not 1"):
        cli.run(["fit", "--config", "recipe.yaml", "--gradient_cache.images", "1"])
