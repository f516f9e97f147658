"""What a method of one's own may get wrong, and what a trainer may be told: one sentence, with the line to mend."""

import linecache
import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ssl_zoo.heads import mlp
from ssl_zoo.method import Method
from ssl_zoo.methods import SimCLR
from ssl_zoo.optim import Group
from ssl_zoo.own_code import line_of, raised_at
from ssl_zoo.start import require_gradients
from tests.conftest import simclr, small, trainer

SMALL = {"projector": (16, 8)}


def line(code):
    """Where a line of this file stands."""
    lines = linecache.getlines(__file__)
    return f"line {next(i for i, one in enumerate(lines, 1) if one.lstrip().startswith(code))} of test_start.py"


class Odd(SimCLR):
    """Returns what a test tells it to."""

    def __init__(self, returns, **options):
        super().__init__(**options)
        self.returns = returns

    def training_loss(self, batch):
        return self.returns(self.encoder(batch.views[0].images))


@pytest.mark.parametrize(("returns", "said"), [
    (lambda z: z.square().mean(1), r"not a tensor \[8\]: return its mean, loss.mean\(\)"),
    (lambda z: z.detach().mean(), r"not a number without one: leave out detach\(\) and no_grad\(\)"),
    (lambda z: {"loss": z.mean()}, r"not dict: return the loss alone, such as loss\['loss'\]"),
    (lambda z: None, "not nothing: end it with return loss"),
    (lambda z: z.mean().item(), r"not float: return the tensor itself, without .item\(\)"),
    (lambda z: (z.mean(), z), "not tuple: return the tensor itself"),
])
def test_what_is_no_loss_is_refused_with_the_line_to_mend(tmp_path, data, returns, said):
    here = re.escape(line_of(Odd.training_loss))
    with pytest.raises(ValueError, match=rf"^Odd.training_loss must return one number with a gradient, {said}.*{here}"):
        trainer(tmp_path).fit(small(Odd, returns=returns, **SMALL), datamodule=data)


def test_a_layer_of_another_width_than_the_encoders_is_named_with_both(tmp_path, data):
    class Wide(SimCLR):
        def training_loss(self, batch):
            return self.projector(self.encoder(batch.views[0].images)).mean()

    method = small(Wide, **SMALL)
    method.projector = mlp(512, 16, 16)
    here = line("return self.projector(self.encoder(")
    with pytest.raises(ValueError, match=r"\(8x8 and 512x16\): of each image the encoder gives 8 features, "
                                         rf"self.encoder.dim \(.*Wide.training_loss, {here}: return self.projector"):
        trainer(tmp_path).fit(method, datamodule=data)


class Misspelt(Method):
    def training_los(self, batch):
        return 0


class Missing(Method):
    pass


class Narrow(SimCLR):
    def training_loss(self):
        return 0


class Late(SimCLR):
    def after_step(self, batch):
        pass


class Plain(SimCLR):
    def evaluated(self):
        return self.encoder


@pytest.mark.parametrize(("kind", "said", "where"), [
    (Misspelt, "has no training_loss(self, batch): rename training_los, ", Misspelt.training_los),
    (Missing, "has no training_loss(self, batch): write one that returns the number to minimise, below ", Missing),
    (Narrow, ".training_loss is called as self.training_loss(batch), and is defined as training_loss(self): mend ",
     Narrow.training_loss),
    (Late, ".after_step is called as self.after_step(), and is defined as after_step(self, batch): mend ",
     Late.after_step),
    (Plain, ".evaluated is an attribute, not a function: write @property above ", Plain.evaluated),
])
def test_a_class_that_cannot_train_is_refused_when_it_is_made(kind, said, where):
    space = "" if said.startswith(".") else " "
    with pytest.raises(ValueError, match=f"^{re.escape(kind.__name__ + space + said + line_of(where))}$"):
        small(kind)


def test_the_place_of_a_function_is_its_first_line():
    assert line_of(Misspelt.training_los) == line("def training_los(self, batch)")


def test_a_function_that_is_nearly_one_of_the_bases_is_pointed_out():
    class Steps(SimCLR):
        def after_steps(self):
            pass

    with pytest.warns(UserWarning, match=r"Steps.after_steps \(.* is not called by itself; did you mean after_step\?"):
        small(Steps, **SMALL)


def test_modules_in_a_plain_list_are_refused_before_anything_runs(tmp_path, data):
    method = small(SimCLR, **SMALL)
    method.heads = [nn.Linear(8, 8)]
    with pytest.raises(ValueError, match="SimCLR.heads is a list of modules, whose weights would neither learn nor be"):
        trainer(tmp_path).fit(method, datamodule=data)


def unused():
    method = small(SimCLR, **SMALL)
    method.predictor = nn.Linear(8, 8)
    return method


def test_parameters_that_no_gradient_reaches_are_named(tmp_path, data):
    with pytest.warns(UserWarning, match=r"no gradient of SimCLR.training_loss \(line \d+ of simclr.py\) reaches "
                                         "predictor.weight and 1 more parameters: use them in the loss"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(unused(), datamodule=data)


@pytest.mark.parametrize(("model", "refused"), [
    (SimpleNamespace(find_unused_parameters=False), True), (SimpleNamespace(find_unused_parameters=True), False)])
def test_processes_that_would_wait_for_such_a_gradient_are_refused(model, refused):
    method = unused()
    for name, parameter in method.named_parameters():
        parameter.grad = None if name.startswith("predictor") else torch.zeros_like(parameter)
    there = SimpleNamespace(global_step=0, model=model, is_global_zero=False)
    if refused:
        with pytest.raises(ValueError, match="predictor.weight and 1 more .* ddp_find_unused_parameters_true$"):
            require_gradients(method, there)
    else:
        require_gradients(method, there)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 1 / 2048), (torch.bfloat16, 1 / 256)])
def test_a_step_of_this_share_of_a_weight_is_rounded_away_in_half_precision(dtype, share):
    one = torch.ones((), dtype=dtype)
    assert one + torch.tensor(share, dtype=dtype) == one < one + torch.tensor(2 * share, dtype=dtype)


# The trainer

@pytest.mark.parametrize(("options", "said"), [
    ({"max_epochs": -1}, "this run has no last step, because neither --trainer.max_epochs nor --trainer.max_steps is"),
    ({"max_epochs": -1, "max_time": "00:00:00:05"}, "--trainer.max_time may still end the run before"),
    ({"accumulate_grad_batches": 0}, "--trainer.accumulate_grad_batches counts from 1, and is 0"),
    ({"check_val_every_n_epoch": 0}, "--trainer.check_val_every_n_epoch counts from 1, and is 0"),
    ({"precision": "bf16-true"}, "precision bf16-true keeps the weights themselves in half precision, .* 1/256"),
    ({"precision": "16-true"}, "precision 16-true keeps the weights themselves in half precision"),
])
def test_a_trainer_that_cannot_train_is_refused_before_anything_runs(tmp_path, data, options, said):
    class Never(pl.Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            pytest.fail("evaluation has begun")

    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, Never(), num_sanity_val_steps=-1, **options).fit(simclr(), datamodule=data)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.full((3, 16, 16), i, dtype=torch.uint8), 0) for i in range(16)])


def test_data_without_a_length_need_a_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="this run has no last step, because its training data have no length"):
        trainer(tmp_path).fit(simclr(), DataLoader(Stream(), 8))


def test_data_without_a_length_train_for_a_number_of_steps(tmp_path):
    running = trainer(tmp_path, max_steps=4, max_epochs=-1)
    running.fit(simclr(), DataLoader(Stream(), 8))
    assert running.global_step == 4
    assert running.optimizers[0].param_groups[0]["lr"] == 0


def test_a_batch_of_one_image_under_batch_norm_gets_a_sentence(tmp_path, data):
    data.batch_size = 1
    with pytest.raises(ValueError, match="BatchNorm needs at least 2 images in a batch, and here it meets 1: raise"):
        trainer(tmp_path).fit(simclr(), datamodule=data)


# Own code

def fails():
    raise KeyError("x")   # here


def test_an_error_is_placed_at_the_last_line_of_ones_own():
    with pytest.raises(KeyError) as caught:
        fails()
    assert raised_at(caught.value) == f'fails, {line("raise KeyError")}: raise KeyError("x")   # here'


def test_an_error_that_passed_no_line_of_ones_own_has_no_place():
    with pytest.raises(TypeError) as caught:
        Group.__init__(None)   # type: ignore
    assert raised_at(caught.value.with_traceback(caught.tb.tb_next)) == ""


def test_what_has_no_source_is_named():
    assert line_of(len) == "len"
