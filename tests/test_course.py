"""A run that goes on with other batches, images, epochs or another optimiser: where its schedule is, and what it says.

The rule, in words: the schedule is where it would be at this epoch and this share of its images if the run had had
today's settings from its start, and its last step has the last learning rate.
"""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset

from ssl_zoo.data import ArrayImages
from ssl_zoo.evaluation import Evaluation
from ssl_zoo.evaluation.callback import Report
from ssl_zoo.memory import SampleTable
from ssl_zoo.methods import MoCo, SimCLR
from ssl_zoo.optim import Group
from ssl_zoo.schedules import WarmupCosine
from tests.conftest import same, small, state, trainer

SCHEDULE, LR = WarmupCosine(0.2, start=0.1, final=0.01), 0.1
EPOCHS, STEPS = 4, 7                   # of the runs that are gone on from: 60 images in batches of 8
WHEN = {"mid-epoch": 10, "epoch end": 14}


class Watch(pl.Callback):
    """What each step saw and learnt at."""

    def __init__(self):
        self.rates, self.decays, self.epochs, self.images, self.progress = [], [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs.append(batch.key.epoch)
        self.images.append(batch.index.tolist())
        self.progress.append(batch.progress.item())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.decays.append([group["weight_decay"] for group in optimizer.param_groups])


def optimizer(kind=torch.optim.SGD, lr=LR, weight_decay=1e-3, **options):
    options = {"momentum": 0.9} | options if kind is torch.optim.SGD else options
    return partial(kind, lr=lr, weight_decay=weight_decay, **options)


def build(method=SimCLR, **changes):
    pl.seed_everything(0, verbose=False)
    return small(method, **{"projector": (16, 8), "schedule": SCHEDULE, "optimizer": optimizer()} | changes)


def loader(arrays, batch_size=8, train_images=None):
    data = ArrayImages(str(arrays), batch_size=batch_size, train_images=train_images)
    data.said = True
    return data


def fit(folder, method, data, *callbacks, ckpt_path=None, **options):
    watch = Watch()
    running = trainer(folder, watch, *callbacks, **{"max_epochs": EPOCHS, "limit_val_batches": 0} | options)
    running.fit(method, data, ckpt_path=ckpt_path)
    return watch, running


def saving(folder, **when):
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, arrays):
    """The checkpoints of a run, and what its steps saw: in the middle of an epoch, at its end, after its last step."""
    folder = tmp_path_factory.mktemp("begun")
    watch, _ = fit(folder, build(), loader(arrays), saving(folder, every_n_train_steps=10),
                   saving(folder / "epochs", save_on_train_epoch_end=True), enable_checkpointing=True)
    return {"mid-epoch": folder / "step=10.ckpt", "epoch end": folder / "epochs/step=14.ckpt"}, watch


def expected(total, left):
    """The rates of the steps that are left of a run of so many."""
    return [LR * SCHEDULE(step / (total - 1)) for step in range(total - left, total)]


CHANGES = {   # what changes: options of the data, options of the trainer, steps of the whole run, steps that are left
    "nothing": ({}, {}, 28, {"mid-epoch": 18, "epoch end": 14}),
    "a smaller batch": ({"batch_size": 4}, {}, 60, {"mid-epoch": 9 + 30, "epoch end": 30}),
    "a larger batch": ({"batch_size": 16}, {}, 12, {"mid-epoch": 2 + 6, "epoch end": 6}),
    "a batch with which none is left": ({"batch_size": 40}, {}, 4, {"mid-epoch": 1 + 2, "epoch end": 2}),
    "accumulation": ({}, {"accumulate_grad_batches": 2}, 16, {"mid-epoch": 3 + 8, "epoch end": 8}),
    "more epochs": ({}, {"max_epochs": 6}, 42, {"mid-epoch": 32, "epoch end": 28}),
    "fewer epochs": ({}, {"max_epochs": 3}, 21, {"mid-epoch": 11, "epoch end": 7}),
    "fewer images": ({"train_images": 30}, {}, 12, {"mid-epoch": 2 + 6, "epoch end": 6}),
    "fewer batches": ({}, {"limit_train_batches": 5}, 20, {"mid-epoch": 2 + 10, "epoch end": 10}),
    "a larger batch and more epochs": ({"batch_size": 16}, {"max_epochs": 8}, 24, {"mid-epoch": 20, "epoch end": 18}),
    "steps instead of epochs": ({}, {"max_epochs": -1, "max_steps": 40}, 40, {"mid-epoch": 30, "epoch end": 26}),
    "a batch and steps": ({"batch_size": 16}, {"max_epochs": -1, "max_steps": 40}, 40,
                          {"mid-epoch": 30, "epoch end": 26}),
    "steps that end it first": ({"batch_size": 4}, {"max_steps": 20}, 20, {"mid-epoch": 10, "epoch end": 6}),
    "steps that it does not reach": ({"batch_size": 16}, {"max_steps": 28}, 12, {"mid-epoch": 8, "epoch end": 6}),
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("change", CHANGES)
def test_the_schedule_goes_on_where_it_was_whatever_changes(begun, arrays, tmp_path, change, when, capsys):
    (checkpoints, _), (data, options, total, left) = begun, CHANGES[change]
    capsys.readouterr()
    watch, running = fit(tmp_path, build(), loader(arrays, **data), ckpt_path=checkpoints[when], **options)
    assert [rates[0] for rates in watch.rates] == pytest.approx(expected(total, left[when]), rel=1e-9)
    assert running.global_step == WHEN[when] + left[when]
    assert watch.epochs[0] == WHEN[when] // STEPS
    assert sorted(set(watch.epochs)) == list(range(watch.epochs[0], watch.epochs[-1] + 1))    # none is passed over
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("from step")]
    assert len(said) == (change != "nothing")
    for line in said:
        assert f"from step {WHEN[when]} on: " in line
        assert f"; {left[when]} steps are left and were {28 - WHEN[when]}, the first with lr " in line
        assert float(line.partition("with lr ")[2].split()[0]) == pytest.approx(watch.rates[0][0], rel=1e-3)


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_the_rest_of_an_epoch_shows_the_images_that_were_not_shown(begun, arrays, tmp_path, batch_size):
    checkpoints, before = begun
    watch, _ = fit(tmp_path, build(), loader(arrays, batch_size=batch_size), ckpt_path=checkpoints["mid-epoch"])
    shown = [i for images in before.images[7:10] for i in images]
    rest = [i for images, epoch in zip(watch.images, watch.epochs, strict=True) if epoch == 1 for i in images]
    assert len(rest) == 36 // batch_size * batch_size
    assert not set(rest) & set(shown)
    assert rest[:32] == [i for images in before.images[10:14] for i in images][:len(rest)]    # in the epoch's own order


def test_where_no_batch_is_left_the_fewest_images_are_shown_again(begun, arrays, tmp_path):
    checkpoints, before = begun
    watch, _ = fit(tmp_path, build(), loader(arrays, batch_size=40), ckpt_path=checkpoints["mid-epoch"])
    shown = {i for images in before.images[7:10] for i in images}
    assert [len(images) for images in watch.images] == [40, 40, 40]
    assert len(set(watch.images[0]) & shown) == 40 - 36


def test_a_step_that_was_half_accumulated_is_begun_again(arrays, tmp_path):
    fit(tmp_path, build(), loader(arrays), saving(tmp_path, every_n_train_steps=2), enable_checkpointing=True)
    watch, running = fit(tmp_path, build(), loader(arrays), accumulate_grad_batches=4,
                         ckpt_path=tmp_path / "step=6.ckpt")        # 6 of 7 batches, where a step begins after 4
    assert [len(images) for images in watch.images[:4]] == [8] * 4
    assert running.global_step == 6 + 1 + 3 * 2
    assert [rates[0] for rates in watch.rates] == pytest.approx(expected(8, 7), rel=1e-9)


def test_progress_continues_with_the_share_of_epochs(begun, arrays, tmp_path):
    watch, _ = fit(tmp_path, build(), loader(arrays, batch_size=16), ckpt_path=begun[0]["epoch end"])
    assert watch.progress == pytest.approx([step / 12 for step in range(6, 12)])


# The optimiser

@pytest.mark.parametrize("when", WHEN)
def test_another_learning_rate_is_obeyed_from_the_first_step(begun, arrays, tmp_path, when, capsys):
    method = build(optimizer=optimizer(lr=3 * LR, weight_decay=0.5, momentum=0.5))
    watch, running = fit(tmp_path, method, loader(arrays), ckpt_path=begun[0][when])
    assert [rates[0] for rates in watch.rates] == pytest.approx(
        [3 * rate for rate in expected(28, 28 - WHEN[when])], rel=1e-9)
    assert watch.decays[0] == [0.5, 0]
    assert running.optimizers[0].param_groups[0]["momentum"] == 0.5
    assert " on: lr 0.3 instead of 0.1; " in capsys.readouterr().err
    assert running.optimizers[0].state[method.encoder.backbone.conv1.weight]["momentum_buffer"].any()


@pytest.mark.parametrize(("kind", "name"), [(torch.optim.AdamW, "torch.optim.AdamW"), (torch.optim.Adam, "Adam")])
@pytest.mark.parametrize("when", WHEN)
def test_another_optimiser_is_refused_in_a_sentence(begun, arrays, tmp_path, kind, name, when):
    with pytest.raises(ValueError, match=rf"^the checkpoint's optimizer is torch.optim.SGD, whose state \S*{name} "
                                         "cannot go on from: name that of the checkpoint, or start a new run from its"):
        fit(tmp_path, build(optimizer=optimizer(kind)), loader(arrays), ckpt_path=begun[0][when])


def test_groups_keep_their_own_rates_and_decays_after_a_change(arrays, tmp_path):
    class Own(SimCLR):
        def groups(self):
            return [Group([self.projector], lr_scale=0.1, weight_decay=lambda progress: progress)]

    fit(tmp_path, build(Own), loader(arrays), saving(tmp_path, save_on_train_epoch_end=True), enable_checkpointing=True)
    watch, _ = fit(tmp_path, build(Own, optimizer=optimizer(lr=0.2)), loader(arrays, batch_size=16),
                   ckpt_path=tmp_path / "step=14.ckpt")
    for step, (rates, decays) in enumerate(zip(watch.rates, watch.decays, strict=True), 6):
        rate = SCHEDULE(step / 11)
        assert rates == pytest.approx([0.2 * rate, 0.2 * rate, 0.02 * rate, 0.02 * rate])
        assert decays == pytest.approx([1e-3, 0, step / 11, 0])


def test_a_number_that_the_optimiser_estimates_is_state_and_not_an_option(arrays, tmp_path):
    class Estimating(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            for group in self.param_groups:
                group["estimate"] = 0.0

        def step(self, closure=None):
            for group in self.param_groups:
                group["estimate"] += 1
            return super().step(closure)

    def of():
        return build(optimizer=partial(Estimating, lr=LR))

    fit(tmp_path, of(), loader(arrays), saving(tmp_path, save_on_train_epoch_end=True), enable_checkpointing=True)
    _, running = fit(tmp_path, of(), loader(arrays), ckpt_path=tmp_path / "step=14.ckpt")
    assert running.optimizers[0].param_groups[0]["estimate"] == 28


# What a method remembers

@pytest.mark.parametrize("when", WHEN)
def test_a_queue_goes_on_with_its_keys_under_another_batch_size(arrays, tmp_path, when):
    options = {"queue": 20, "momentum": 0.9}
    fit(tmp_path, build(MoCo, **options), loader(arrays), saving(tmp_path, every_n_train_steps=2),
        enable_checkpointing=True)
    path = tmp_path / f"step={WHEN[when]}.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    method = build(MoCo, **options)
    fit(tmp_path, method, loader(arrays, batch_size=4), ckpt_path=path, max_steps=WHEN[when] + 1)
    head, keys, index = (saved[f"queue.{name}"] for name in ("head", "keys", "index"))
    kept = [(int(head) + i) % 20 for i in range(4, 20)]                        # all but the 4 oldest
    assert torch.equal(method.queue.keys[kept], keys[kept])
    assert torch.equal(method.queue.index[kept], index[kept])
    assert method.queue.head == (head + 4) % 20


def test_a_queue_forgets_the_places_of_its_images_where_their_number_changes(arrays, tmp_path):
    options = {"queue": 20, "momentum": 0.9}
    fit(tmp_path, build(MoCo, **options), loader(arrays), saving(tmp_path, every_n_train_steps=2),
        enable_checkpointing=True)
    method = build(MoCo, **options)
    fit(tmp_path, method, loader(arrays, train_images=40), ckpt_path=tmp_path / "step=10.ckpt", max_steps=11)
    assert (method.queue.index >= 0).sum() == 8
    assert method.queue.filled == 20


class Tabled(SimCLR):
    def __init__(self, images, **options):
        super().__init__(**options)
        self.table = SampleTable(images, seen=0.0)

    def training_loss(self, batch):
        self.table.write(batch.index, seen=self.table.read("seen", batch.index) + 1)
        return super().training_loss(batch)


def test_a_table_goes_on_with_another_batch_size_and_is_refused_with_other_images(arrays, tmp_path):
    fit(tmp_path, build(Tabled, images=60), loader(arrays), saving(tmp_path, every_n_train_steps=2),
        enable_checkpointing=True)
    method = build(Tabled, images=60)
    fit(tmp_path, method, loader(arrays, batch_size=4), ckpt_path=tmp_path / "step=10.ckpt", max_epochs=2)
    assert method.table.seen.sum() == 56 + 60
    with pytest.raises(ValueError, match="^the checkpoint keeps a row for each of 60 images, and table one for "
                                         "each of 40, .*: go on with the same images, or start a new"):
        fit(tmp_path, build(Tabled, images=40), loader(arrays, train_images=40), ckpt_path=tmp_path / "step=10.ckpt")


# Loaders of one's own, and older checkpoints

@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize(("batch", "left"), [(8, 32 - 10), (4, 8 + 32), (16, 3 + 8)])
def test_a_loader_of_ones_own_goes_on_at_the_same_share_of_its_batches(arrays, tmp_path, batch, left):
    def own(batch):
        images = torch.randint(256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.zeros(64).long()), batch)

    fit(tmp_path, build(), own(8), saving(tmp_path, every_n_train_steps=10), enable_checkpointing=True)
    _, running = fit(tmp_path, build(), own(batch), ckpt_path=tmp_path / "step=10.ckpt")
    total = 4 * 64 // batch
    done = 64 // batch + 2 * (64 // batch) // 8                               # an epoch, and 2 of 8 batches
    assert running.global_step == 10 + total - done
    assert running.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR * SCHEDULE(1))


def test_a_checkpoint_that_does_not_say_its_settings_goes_on_bit_for_bit(begun, arrays, tmp_path):
    content = torch.load(begun[0]["mid-epoch"], weights_only=True)
    del content["course"], content["optimizer_states"][0]["class"]
    content["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"epoch": 1, "batch": 3}]
    torch.save(content, tmp_path / "old.ckpt")
    methods = [build(), build()]
    for method, path in zip(methods, (begun[0]["mid-epoch"], tmp_path / "old.ckpt"), strict=True):
        fit(tmp_path, method, loader(arrays), ckpt_path=path)
    assert same(*map(state, methods))
    with pytest.raises(ValueError, match="the checkpoint's optimizer is another one, whose state torch.optim.AdamW"):
        fit(tmp_path, build(optimizer=optimizer(torch.optim.AdamW)), loader(arrays), ckpt_path=tmp_path / "old.ckpt")


# Ends of epochs

@pytest.mark.parametrize("options", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 21},
                                     {"max_epochs": 4, "max_steps": 18}])
@pytest.mark.parametrize("when", [{"save_on_train_epoch_end": True}, {"every_n_train_steps": 7},
                                  {"every_n_epochs": 1, "save_on_train_epoch_end": False}])
def test_no_epoch_is_passed_over_shown_twice_or_left_unevaluated(arrays, tmp_path, options, when):
    def run(folder, **more):
        evaluation, report = Evaluation(["nearest_class_mean"]), Report()
        watch, _ = fit(tmp_path, method := build(), loader(arrays), evaluation, report, saving(folder, **when),
                       enable_checkpointing=True, limit_val_batches=1.0, num_sanity_val_steps=-1, **options, **more)
        return watch, state(method), report.columns

    whole, weights, columns = run(tmp_path / "whole")
    watch, weights_again, columns_again = run(tmp_path / "again", ckpt_path=tmp_path / "whole/step=7.ckpt")
    assert watch.images == whole.images[7:]
    assert watch.rates == whole.rates[7:]
    assert same(weights, weights_again)
    assert columns_again == columns


@pytest.mark.parametrize("options", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 28}])
def test_an_epoch_that_max_steps_cut_short_is_gone_on_with(begun, arrays, tmp_path, options):
    _, running = fit(tmp_path, build(), loader(arrays), saving(tmp_path, save_on_train_epoch_end=True),
                     enable_checkpointing=True, max_steps=10)
    running.save_checkpoint(tmp_path / "ended.ckpt")
    for path in ("step=10.ckpt", "ended.ckpt"):
        watch, _ = fit(tmp_path, build(), loader(arrays), ckpt_path=tmp_path / path, **options)
        assert watch.images == begun[1].images[10:]
        assert [rates[0] for rates in watch.rates] == pytest.approx(expected(28, 18), rel=1e-9)


# What is logged and reported

class Kept(Logger):
    """The numbers that were logged, by name and step."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.numbers = {}

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step):
        for name, value in metrics.items():
            assert step not in self.numbers.setdefault(name, {}) or name == "epoch", f"{name} at {step} again"
            self.numbers[name][step] = value


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("step", "when"), [
    (10, {"every_n_train_steps": 10}), (7, {"every_n_train_steps": 7}), (14, {"save_on_train_epoch_end": True}),
    (14, {"every_n_epochs": 1, "save_on_train_epoch_end": False})])
def test_each_step_is_logged_once_with_the_rate_of_the_schedule(arrays, tmp_path, step, when, every):
    logs = []
    for options in ({}, {"ckpt_path": tmp_path / f"step={step}.ckpt"}):
        logs.append(Kept())
        fit(tmp_path, build(), loader(arrays), Evaluation(["nearest_class_mean"]), saving(tmp_path, **when),
            LearningRateMonitor(), enable_checkpointing=True, limit_val_batches=1.0, logger=logs[-1],
            log_every_n_steps=every, **options)
    whole, again = (log.numbers for log in logs)
    assert list(whole["loss"]) == list(range(every - 1, 28, every))
    for name, values in whole.items():
        rest = {at: value for at, value in values.items() if at >= step}
        if name not in ("epoch", "nearest_class_mean"):
            assert rest
            assert again[name] == rest, name
    evaluated = {at: value for at, value in again["nearest_class_mean"].items() if at >= step}
    assert evaluated == {at: value for at, value in whole["nearest_class_mean"].items() if at >= step}
    rates = next(values for name, values in again.items() if name.startswith("lr-"))
    assert rates == {at: pytest.approx(LR * SCHEDULE(at / 27)) for at in whole["loss"] if at >= step}


def report(folder, data, *callbacks, build=build, **options):
    made = Report(raw_pixels=True)
    fit(folder, build(), data, Evaluation(["nearest_class_mean"]), made, *callbacks,
        **{"limit_val_batches": 1.0, "num_sanity_val_steps": -1} | options)
    return made.columns


@pytest.mark.parametrize("step", [7, 10, 14])
def test_the_untrained_column_is_the_one_that_was_measured_before_training(arrays, tmp_path, step):
    keeping = [saving(tmp_path, every_n_train_steps=10), saving(tmp_path, save_on_train_epoch_end=True)]
    whole = report(tmp_path, loader(arrays), *keeping, enable_checkpointing=True)
    again = report(tmp_path, loader(arrays), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert again == whole
    assert list(whole)[:2] == ["raw pixels", "untrained encoder"]


def test_a_trained_encoder_is_never_called_untrained(arrays, tmp_path):
    report(tmp_path, loader(arrays), saving(tmp_path, save_on_train_epoch_end=True), enable_checkpointing=True,
           num_sanity_val_steps=0)
    again = report(tmp_path, loader(arrays), ckpt_path=tmp_path / "step=14.ckpt")
    assert list(again) == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]


def test_the_last_epoch_is_evaluated_also_by_a_run_that_goes_on_within_it(arrays, tmp_path):
    options = {"check_val_every_n_epoch": 10, "num_sanity_val_steps": 0}
    report(tmp_path, loader(arrays), saving(tmp_path, every_n_train_steps=25), enable_checkpointing=True, **options)
    assert list(report(tmp_path, loader(arrays), ckpt_path=tmp_path / "step=25.ckpt", **options)) == ["epoch 4"]
