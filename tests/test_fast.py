"""Memory formats, compilation and fused optimisers: a faster run is the same run, and its files are the same files."""

import copy
import shutil
from functools import partial, partialmethod

import pytest
import pytorch_lightning as pl
import torch

from ssl_zoo.checkpoints import load_encoder
from ssl_zoo.contract.runs import noise, seeded, train
from ssl_zoo.encoders import Encoder, NarrowResNet
from ssl_zoo.export import save_encoder
from ssl_zoo.fast import Fast
from ssl_zoo.methods import BYOL, SimCLR
from ssl_zoo.optim import built
from tests.conftest import small


class Middle(pl.Callback):
    """Saves a checkpoint after the first of two epochs."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def by_eager(monkeypatch):
    """Compile without kernels, and without a compiler; gives the graphs that were made."""
    torch._dynamo.reset()
    graphs = []
    monkeypatch.setattr(Encoder, "compile", partialmethod(
        Encoder.compile, backend=lambda graph, inputs: graphs.append(graph) or graph.forward))
    return graphs


def teaching(fused):
    return small(BYOL, projector=(16, 8), predictor=(16,),
                 optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, fused=fused))


def contrasting(fused):
    return small(SimCLR, projector=(16, 8), optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, fused=fused))


def test_a_fast_run_and_a_plain_one_go_on_from_each_others_checkpoints(by_eager, tmp_path):
    kinds = {"plain": (), "fast": (Fast(channels_last=True, compile=True),)}
    ends, keys = {}, {}
    for name, callbacks in kinds.items():
        method = seeded(partial(contrasting, fused=name == "fast"))
        train(method, *callbacks, Middle(tmp_path / f"{name}.ckpt"))
        ends[name] = method.state_dict()
        keys[name] = list(torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"])
    assert by_eager
    assert keys["plain"] == keys["fast"] == list(ends["fast"])
    assert not any("_orig_mod" in key for key in keys["fast"])
    for name, other in (("plain", "fast"), ("fast", "plain")):
        method = seeded(partial(contrasting, fused=name == "fast"), seed=1)
        train(method, *kinds[name], ckpt_path=tmp_path / f"{other}.ckpt")
        for key, value in method.state_dict().items():
            assert torch.allclose(value, ends["plain"][key], atol=1e-4), f"{name} from {other}: {key}"


@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.AdamW, lr=0.1)])
def test_a_fused_optimizer_goes_on_from_a_state_of_another_memory_format(kind):
    """In torch's own way it reads the momentum in the wrong order, and says nothing."""
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        optimizer = built(partial(kind, fused=fused), [{"params": [weight]}])
        for _ in range(2):
            weight.grad = torch.randn(4, 3, 3, 3)
            optimizer.step()
        other = torch.nn.Parameter(weight.detach().clone(memory_format=torch.channels_last))
        resumed = built(partial(kind, fused=fused), [{"params": [other]}])
        resumed.load_state_dict(optimizer.state_dict())
        other.grad = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        resumed.step()
        found.append(other.detach())
    assert torch.allclose(*found, atol=1e-6)


def test_weights_and_views_come_in_channels_last_and_the_teachers_too():
    shapes = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            shapes.extend([batch.views[0].images, *(p for p in pl_module.parameters() if p.ndim == 4)])

    train(seeded(partial(teaching, fused=True)), Fast(channels_last=True), Look(), max_steps=1)
    assert len(shapes) > 5
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in shapes)


def test_a_compiled_encoder_exports_copies_and_evaluates_as_a_plain_one(by_eager, tmp_path):
    encoder, (images, _) = seeded(lambda: NarrowResNet(4, 2)), noise()
    expected, maps = encoder(images[:8]), encoder.maps(images[:8])
    encoder.compile()
    assert torch.allclose(encoder(images[:8]), expected, atol=1e-6)
    assert torch.allclose(encoder.maps(images[:8]), maps, atol=1e-6)
    assert len(by_eager) >= 2
    twin, count = copy.deepcopy(encoder), len(by_eager)
    torch.nn.init.zeros_(encoder.backbone.conv1.weight)
    assert torch.allclose(twin.maps(images[:8]), maps, atol=1e-6)     # its own, not those of what it was copied from
    assert len(by_eager) == count
    method = seeded(partial(teaching, fused=True))
    method.encoder.compile()
    features = method.encode(images)
    assert len(by_eager) == count, "evaluation compiles for each size of its batches"
    exported = load_encoder(save_encoder(method.evaluated, tmp_path / "encoder"), kind=NarrowResNet).eval()
    assert torch.equal(exported(images), features)


def test_fused_optimizers_clip_gradients_in_mixed_precision():
    method = seeded(partial(teaching, fused=True))
    train(method, max_epochs=1, precision="bf16-mixed", gradient_clip_val=1.0)
    assert all(p.isfinite().all() for p in method.parameters())


def test_compiling_without_a_compiler_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"calls a C\+\+ compiler, and there is none on the PATH: install g\+\+"):
        train(seeded(partial(teaching, fused=True)), Fast(compile=True), max_epochs=1)
