"""The promises that the base class makes to methods, to callbacks and to whoever resumes a run."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import Evaluation
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached
from ssl_zoo.memory import SampleTable
from ssl_zoo.methods import SimCLR
from ssl_zoo.optim import Group, constant
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, Key, ViewSpec
from tests.conftest import MULTI_CROP, same, simclr, small, state, trainer


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)


def test_encode_is_deterministic_and_leaves_no_trace(method, images):
    method.encoder.backbone.bn1.eval()   # a module that its owner froze stays frozen
    modes = [module.training for module in method.modules()]
    before = state(method)
    first, second = method.encode(images), method.encode(images)
    assert torch.equal(first, second)
    assert first.shape == (4, method.encoder.dim)
    assert not first.requires_grad
    assert same(before, method.state_dict())
    assert modes == [module.training for module in method.modules()]


def test_encode_is_float32_under_autocast(method, images):
    expected = method.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.encode(images), expected)


def test_encode_reads_uint8_and_unit_floats_alike(method, images):
    assert torch.allclose(method.encode(images), method.encode(images / 255), atol=1e-6)


def test_views_of_a_batch_are_those_of_seed_epoch_and_batch(tmp_path, data):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            key = Key(0, trainer.current_epoch, batch_idx, 0)
            drawn = pl_module.augment(batch.images, key)
            seen.append(all(same(list(a), list(b)) for a, b in zip(batch.views, drawn, strict=True)))

    trainer(tmp_path, Watch(), limit_train_batches=3).fit(simclr(), datamodule=data)
    assert seen == [True] * 6


def test_evaluation_sees_no_views(tmp_path, data):
    class Watch(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            assert batch.views == []

    trainer(tmp_path, Watch(), max_epochs=1).fit(simclr(), datamodule=data)


def test_after_step_runs_once_for_each_optimiser_step(tmp_path, data):
    class Counting(SimCLR):
        steps = 0

        def after_step(self):
            self.steps += 1

    counting = Counting(encoder=NarrowResNet(4, 2), augment=Augmentation([ViewSpec(16, 2)]),
                        optimizer=torch.optim.SGD, schedule=WarmupCosine(), projector=(8,))
    running = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3)
    running.fit(counting, datamodule=data)   # 7 batches of 8
    assert counting.steps == running.global_step == 3


def test_the_learning_rate_follows_the_schedule(tmp_path, data):
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer(tmp_path, Watch()).fit(simclr(), datamodule=data)   # 14 steps
    assert rates == pytest.approx([0.1 * WarmupCosine(0.2)(step / 13) for step in range(14)])


def test_the_last_of_the_steps_has_the_final_learning_rate(tmp_path, data):
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    method = simclr(schedule=WarmupCosine(0.2, start=0.1, final=0.3))
    trainer(tmp_path, Watch(), max_epochs=1, accumulate_grad_batches=2).fit(method, datamodule=data)   # 4 steps
    assert rates[0] == pytest.approx(0.01)
    assert rates[3] == pytest.approx(0.03)


def test_a_method_names_parameters_that_learn_at_a_rate_of_their_own(tmp_path, data):
    class Two(SimCLR):
        def groups(self):
            return [Group([self.projector], lr_scale=0.1, schedule=constant)]

    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    method = small(Two, projector=(16, 8))
    trainer(tmp_path, Watch(), max_epochs=1).fit(method, datamodule=data)   # 7 steps
    assert len(rates) == 7
    for step, (encoder, norms, *projector) in enumerate(rates):
        assert encoder == norms == pytest.approx(0.05 * WarmupCosine(0.2, start=0.1)(step / 6))
        assert projector == pytest.approx([0.005, 0.005])


def test_a_batch_knows_the_progress_of_training_on_the_host(tmp_path, data):
    found = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert batch.progress.shape == ()
            assert batch.progress.device.type == "cpu"
            found.append((batch.progress.item(), pl_module.progress))

    trainer(tmp_path, Watch(), accumulate_grad_batches=2, limit_train_batches=4).fit(simclr(), datamodule=data)
    assert [progress for progress, _ in found] == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])
    assert [progress for progress, _ in found] == pytest.approx([progress for _, progress in found])


def test_progress_is_zero_without_a_trainer(method):
    assert method.progress == 0


class Tabled(SimCLR):
    """Weighs each image's first feature by how often it was seen."""

    def __init__(self, images, **options):
        super().__init__(**options)
        self.table = SampleTable(images, seen=0.0)

    def training_loss(self, batch):
        seen = self.table.read("seen", batch.index)
        self.table.write(batch.index, seen=seen + 1)
        return (self.encoder(batch.views[0].images)[:, 0] * (1 + seen)).mean()


def test_a_table_of_another_length_than_the_data_is_refused_before_anything_runs(tmp_path, data):
    method = small(Tabled, images=59, projector=(16, 8))
    before = state(method)
    with pytest.raises(ValueError, match="a table of 59 images, and the training part has 60: give the method that"):
        trainer(tmp_path, num_sanity_val_steps=-1).fit(method, datamodule=data)
    assert same(state(method), before)


def test_a_table_counts_each_image_once_an_epoch(tmp_path, data):
    trainer(tmp_path).fit(method := small(Tabled, images=60, projector=(16, 8)), datamodule=data)
    assert method.table.seen.sum() == 2 * 56                        # two epochs of 7 batches of 8
    assert method.table.seen.max() == 2


def test_biases_and_norms_do_not_decay(tmp_path, data):
    running = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    running.fit(method := simclr(), datamodule=data)
    decays = {id(p): group["weight_decay"] for group in running.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert decays.pop(id(parameter)) == (1e-3 if parameter.ndim > 1 else 0), name
    assert not decays


@pytest.mark.parametrize(("steps", "when"), [
    (7, {"every_n_train_steps": 7}),                                    # the last batch of an epoch
    (10, {"every_n_train_steps": 10}),                                  # the middle of one
    (7, {"every_n_epochs": 1}),                                         # after the evaluation of an epoch
    (7, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),        # after an epoch
])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, data, steps, when):
    def run(folder, *more, **options):
        probe = Evaluation(["knn", LinearCached(2)])
        saving = ModelCheckpoint(folder, save_top_k=-1, **when)
        running = trainer(tmp_path, probe, saving, *more, max_epochs=3, enable_checkpointing=True)
        running.fit(model := simclr(), datamodule=data, **options)
        return {"weights": state(model), "optimizer": running.optimizers[0].state_dict(),
                "schedule": running.lr_scheduler_configs[0].scheduler.state_dict(), "probe": probe.state_dict(),
                "step": running.global_step}

    whole = run(tmp_path / "whole")
    checkpoint = next((tmp_path / "whole").glob(f"*step={steps}.ckpt"))
    losses = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(outputs["loss"])

    resumed = run(tmp_path / "resumed", Watch(), ckpt_path=checkpoint)
    assert len(losses) == 21 - steps
    assert same(whole, resumed)


def test_evaluation_changes_nothing_of_the_run(tmp_path, data):
    with_it, without = simclr(), simclr()
    assert same(state(with_it), state(without))
    for model, callbacks in ((with_it, [Evaluation(["knn", LinearCached(2), "health", "neighbours"])]), (without, [])):
        pl.seed_everything(1)
        running = trainer(tmp_path, *callbacks, **({} if callbacks else {"limit_val_batches": 0}))
        running.fit(model, datamodule=data)
        model.random = torch.get_rng_state()
    assert same(state(with_it), state(without))   # running statistics included
    assert torch.equal(with_it.random, without.random)


def test_a_checkpoint_of_a_run_built_in_python_holds_no_objects(tmp_path, data):
    running = trainer(tmp_path, max_epochs=1)
    running.fit(simclr(), datamodule=data)
    running.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)   # refuses anything but plain values and tensors
    assert saved["hyper_parameters"] == {"projector": (16, 8), "projector_norm": True, "temperature": 0.1,
                                         "judge": None}


def test_a_checkpoint_of_another_architecture_is_refused_in_a_sentence(tmp_path, data):
    running = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    running.fit(simclr(), datamodule=data)
    running.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"another architecture: 0 tensors missing, 0 unexpected, \d+ of"):
        trainer(tmp_path).fit(simclr(encoder=NarrowResNet(8, 2)), datamodule=data, ckpt_path=tmp_path / "run.ckpt")


@pytest.mark.parametrize("count", [1, 3, 8])
def test_simclr_refuses_another_number_of_views_than_two(count):
    with pytest.raises(ValueError, match=f"SimCLR learns from 2 views of each image, and this recipe draws {count}"):
        simclr(augment=Augmentation([ViewSpec(16, count)]))


def test_simclr_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="a temperature must be above 0, not 0"):
        simclr(temperature=0)


def test_simclr_trains_close_to_float32_under_bf16(tmp_path, data):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        running = trainer(tmp_path, max_epochs=1, limit_train_batches=1, precision=precision)
        running.fit(simclr(), datamodule=data)
        losses[precision] = running.callback_metrics["loss"].item()
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)


class OneSize(NarrowResNet):
    """An encoder for images of 16 pixels alone, as many transformers are."""

    def maps(self, images):
        assert images.shape[-1] == 16, f"image height {images.shape[-1]} does not match 16"
        return super().maps(images)


def test_views_that_the_encoder_does_not_take_are_refused_before_anything_runs(arrays, tmp_path):
    method = small(SimCLR, *MULTI_CROP, encoder=OneSize(4, 2), projector=(16, 8))
    before = state(method)
    with pytest.raises(ValueError, match=r"not take images of 8 pixels \(image height 8 does not match 16\): give"):
        trainer(tmp_path, num_sanity_val_steps=-1).fit(method, ArrayImages(str(arrays), batch_size=8))
    assert same(state(method), before)
