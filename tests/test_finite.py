"""Weights and losses that are not finite: found, named by their step and images, and never saved."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ssl_zoo import save_encoder
from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.finite import largest, listed, not_finite, require_finite
from ssl_zoo.monitor import FiniteRun, LossSpikes
from ssl_zoo.saving import Checkpoints, LastCheckpoint, WholeCheckpoints
from tests.conftest import simclr, trainer

VALUES = [float("nan"), float("inf"), -float("inf")]


class Breaks(pl.Callback):
    """Makes a part of a run not finite at a step, counted from 1."""

    def __init__(self, what: str = "weights", step: int = 4, value: float = float("nan")):
        self.what, self.step, self.value = what, step, value

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == self.step and self.what == "weights":
            next(pl_module.parameters()).grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.images = getattr(self, "images", []) + [batch.index.tolist()]
        if trainer.global_step == self.step:
            if self.what == "buffers":
                pl_module.encoder.backbone.bn1.running_var[0] = self.value
            if self.what == "moments":
                next(iter(trainer.optimizers[0].state.values()))["momentum_buffer"].view(-1)[0] = self.value
            if self.what == "loss":
                outputs["loss"] = outputs["loss"] * self.value


def run(folder, arrays, *callbacks, **options):
    running = trainer(folder, *callbacks, LastCheckpoint(), **{
        "plugins": [WholeCheckpoints()], "enable_checkpointing": True, "limit_val_batches": 0,
        "max_epochs": 3} | options)
    running.fit(simclr(), datamodule=ArrayImages(str(arrays), batch_size=8))
    return running


def test_the_loss_that_is_watched_is_the_one_that_is_logged_where_batches_accumulate(tmp_path, arrays):
    """Lightning divides what callbacks see by the number of batches."""
    watch, logged = LossSpikes(steps=2), []

    class Logged(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            logged.append(trainer.callback_metrics["loss"].item())

    run(tmp_path, arrays, Logged(), watch, accumulate_grad_batches=2, log_every_n_steps=1000)
    assert [loss.item() for *_, loss in watch.seen] == pytest.approx(logged)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shape", [(1,), (2, 7), ()])
def test_one_value_among_many_tensors_is_found_and_named(value, shape):
    state = {"a": torch.randn(3, 4), "b": torch.full(shape, 3e38), "c": torch.empty(0), "d": torch.tensor(7),
             "e": torch.ones(2, dtype=torch.float16), "f": torch.ones(5, dtype=torch.bfloat16), "g": torch.tensor(True)}
    assert largest(state.values()) == torch.tensor(3e38)
    assert not_finite(state) == []
    state["b"].view(-1)[-1] = value
    assert not largest(state.values()).isfinite()
    state["f"][2] = value
    assert not_finite(state) == ["b", "f"]
    assert largest([]) == 0


def test_names_are_counted_after_the_first():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a and 2 more"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"


def test_an_encoder_that_is_not_finite_is_not_exported(tmp_path):
    encoder = NarrowResNet(4, 2)
    with torch.no_grad():
        encoder.backbone.conv1.weight[0] = torch.inf
    with pytest.raises(ValueError, match="this encoder has values that are not finite in backbone.conv1.weight: it is"):
        save_encoder(encoder, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []
    require_finite(nn.Linear(2, 2), "it", "")


@pytest.mark.parametrize(("what", "said", "value"), [
    ("loss", "the loss is not finite at step 10", float("inf")),
    ("loss", "the loss is not finite at step 10", float("nan")),
    ("weights", r"the weights are not finite after step 10, whose loss was [0-9.]+", -float("inf"))])
def test_the_step_that_is_named_is_the_step_and_nothing_is_saved_after_it(tmp_path, arrays, what, said, value):
    breaks = Breaks(what, 10, value)
    with pytest.raises(ValueError, match=said) as error:
        run(tmp_path, arrays, breaks, FiniteRun(), Checkpoints(every_n_steps=3))
    named = [int(one) for one in str(error.value).partition("its images are ")[2].partition(")")[0].split(", ")]
    assert named == breaks.images[9]
    assert f"the last good checkpoint is {tmp_path}/checkpoints/last.ckpt" in str(error.value)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 9


def test_a_step_of_several_batches_is_named_once(tmp_path, arrays):
    with pytest.raises(ValueError, match="not finite after step 4"):     # of batches 8 to 10
        run(tmp_path, arrays, Breaks("weights", 4), FiniteRun(), accumulate_grad_batches=3)


@pytest.mark.parametrize(("what", "said"), [
    ("buffers", "not finite at step 4: encoder.backbone.bn1.running_var, which is not saved"),
    ("moments", "not finite at step 4: the optimiser's momentum_buffer 0, which is not saved")])
def test_what_else_a_checkpoint_holds_is_looked_at_before_it_is_saved(tmp_path, arrays, what, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, arrays, Breaks(what), FiniteRun(), Checkpoints(every_n_steps=1))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_a_buffer_that_is_infinite_from_the_start_stops_no_run(tmp_path, arrays):
    method = simclr()
    method.register_buffer("lowest", torch.tensor(torch.inf))
    running = trainer(tmp_path, FiniteRun(), LastCheckpoint(), plugins=[WholeCheckpoints()], enable_checkpointing=True,
                      limit_val_batches=0, max_epochs=1)
    running.fit(method, datamodule=ArrayImages(str(arrays), batch_size=8))
    assert (tmp_path / "checkpoints/last.ckpt").exists()


def test_weights_alone_are_looked_at_too(tmp_path):
    saver = WholeCheckpoints()
    with pytest.raises(ValueError, match="not finite: a, which is not saved"):
        saver.save_checkpoint({"state_dict": {"a": torch.tensor(torch.nan)}}, tmp_path / "weights.ckpt")
    assert list(tmp_path.iterdir()) == []


# Spikes

def test_a_spike_is_what_is_far_above_the_usual_and_does_not_count_as_usual():
    spikes, draws = LossSpikes(6.0, 50), torch.Generator().manual_seed(0)
    losses = (3 + 0.1 * torch.randn(500, generator=draws)).tolist()
    assert [spikes.spike(loss) for loss in losses] == [None] * 500
    assert (spikes.mean, spikes.variance ** 0.5) == (pytest.approx(3, abs=0.06), pytest.approx(0.1, rel=0.3))
    usual = spikes.mean
    assert spikes.spike(3.4) is None
    assert spikes.spike(8.0) == pytest.approx(usual, abs=0.02)
    assert spikes.spike(8.0) == pytest.approx(usual, abs=0.02)
    assert spikes.spike(-5.0) is None
    with pytest.raises(ValueError, match="a spike is more than 0 deviations above the mean of 2 steps or more"):
        LossSpikes(0.0)


class Jump(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        outputs["loss"] = torch.tensor(1000.0 if trainer.global_step == 13 else 3.0 + trainer.global_step % 2)
        if trainer.global_step == 13:
            self.images = batch.index.tolist()


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_names_the_step_and_images_of_a_spike(tmp_path, arrays, stop):
    jump, spikes = Jump(), LossSpikes(steps=10, stop=stop)
    said = r"the loss is 1000 at step 13, where it had been 3\.\d+ \(its images are ([\d, ]+)\); the last good"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if stop:
            with pytest.raises(ValueError, match=said):
                run(tmp_path, arrays, jump, spikes, log_every_n_steps=5)
        else:
            run(tmp_path, arrays, jump, spikes, log_every_n_steps=5)
            found = [str(one.message) for one in warned if "where it had been" in str(one.message)]
            assert len(found) == 1
            assert str(jump.images).strip("[]") in found[0]
