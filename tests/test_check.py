"""What `ssl_zoo.contract` and `ssl-zoo check` say of methods that break the contract, each in a way of its own."""

import copy
import os
from functools import partial

import pytest
import torch
import torch.distributed as dist
import yaml

from ssl_zoo import contract
from ssl_zoo.cli import run
from ssl_zoo.contract import gloo
from ssl_zoo.distributed import gather, rank
from ssl_zoo.heads import mlp
from ssl_zoo.method import Method
from ssl_zoo.methods import SimCLR
from tests.conftest import small


class Whole(Method):
    """Two views have the same projection. It keeps the contract; each class below breaks one part of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.projector = mlp(self.encoder.dim, 8, 4)
        self.register_buffer("table", torch.zeros(contract.IMAGES))

    def project(self, batch):
        return [self.projector(self.encoder(view.images)) for view in batch.views]

    def training_loss(self, batch):
        z1, z2 = self.project(batch)
        return (z1 - z2).square().sum(1).mean()


class EachRow(Whole):
    def training_loss(self, batch):
        z1, z2 = self.project(batch)
        return (z1 - z2).square().sum(1)


class Detached(Whole):
    def training_loss(self, batch):
        return super().training_loss(batch).detach()


class Crashes(Whole):
    def training_loss(self, batch):
        return super().training_loss(batch) * (1 / len(batch.views[2:]))


class Remembers(Whole):
    """In a plain attribute, which no checkpoint holds."""

    seen = 0

    def training_loss(self, batch):
        self.seen += 1
        return super().training_loss(batch) * self.seen


class Chance(Whole):
    """Torch's own random numbers, which a resumed run draws again from the start."""

    def training_loss(self, batch):
        return super().training_loss(batch) * (1 + torch.rand(()))


class OwnTable(Whole):
    """A row for each image, which only the process that has seen the image writes."""

    def training_loss(self, batch):
        z1, z2 = self.project(batch)
        distances = (z1 - z2).square().sum(1)
        self.table[batch.index] = distances.detach().to(self.table.dtype)
        return distances.mean()


class OwnMean(Whole):
    """Centred over the images of one process."""

    def training_loss(self, batch):
        z1, z2 = self.project(batch)
        return ((z1 - z1.mean(0)) - (z2 - z2.mean(0))).square().sum(1).mean()


class NoGradientBack(Whole):
    """Gathered, with a gradient for this process's own rows alone: half of what it should be."""

    def training_loss(self, batch):
        z1, z2 = self.project(batch)
        rows, start = gather(z2.detach()).clone(), rank() * len(z2)
        rows[start:start + len(z2)] = z2
        return (z1 - z2).square().sum(1).mean() + rows.mean(0).square().sum()


class Hasty(Whole):
    """A teacher that moves with each batch, also where a step takes two."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher = copy.deepcopy(self.projector).requires_grad_(False)

    def training_loss(self, batch):
        for old, new in zip(self.teacher.parameters(), self.projector.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)
        target = self.teacher(self.encoder(batch.views[1].images)).detach()
        return (self.project(batch)[0] - target).square().sum(1).mean()


class Reads(Whole):
    def training_loss(self, batch):
        loss = super().training_loss(batch)
        return loss * 2 if loss.item() > 0 else loss


class OnTheHost(Whole):
    def training_loss(self, batch):
        return super().training_loss(batch) + (self.project(batch)[0] * torch.ones(4)).mean()


class Unused(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.predictor = mlp(4, 4)


class Twice(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.both = torch.nn.Sequential(self.encoder, self.projector)


class Ends(Whole):
    """Takes its process with it, where there are two."""

    def training_loss(self, batch):
        if dist.is_initialized():
            os._exit(7)
        return super().training_loss(batch)


class HalfFails(Whole):
    """One process raises while the other waits for its rows."""

    def training_loss(self, batch):
        if batch.key.rank:
            raise ZeroDivisionError("nothing to divide by")
        z1, z2 = self.project(batch)
        return (gather(z1) - gather(z2)).square().sum(1).mean()


BROKEN = [
    (EachRow, "gradients", r"EachRow.training_loss must return one number with a gradient, not a tensor \[8\]"),
    (Detached, "gradients", r"Detached.training_loss must return one number .* not a number without one"),
    (Unused, "gradients", "predictor.0.weight learns but no gradient reaches it"),
    (Remembers, "resume", r"resumed in mid-epoch, the loss of step 3 is .* and was .*: keep what the loss remembers in "
                          "buffers"),
    (Chance, "resume", "draw its random numbers from batch.key"),
    (Hasty, "accumulation", "teacher.0.weight moves at the first of them: move averaged weights in after_step"),
    (Reads, "gpu", r"reads a number back from the GPU \(.item\(\)"),
    (OnTheHost, "gpu", "mixes tensors of the GPU and of the host"),
    (Reads, "compiled", r"torch.compile makes \d+ graphs of training_loss, at step 1, .*line \d+ of test_check.py, "
                        "return loss [*] 2 if loss.item"),
    (Remembers, "compiled", "changes from step to step; make it a tensor"),
    (Twice, "files", "holds one tensor under two names"),
]
ON_TWO = [
    (OwnTable, "the buffer table differs between two processes after batch 1: write it with the rows of all"),
    (OwnMean, "gather what is compared with other images"),
    (NoGradientBack, "the gradient of .* gather with a gradient"),
    (Ends, "the process ended with status 7"),
    (HalfFails, "on one of two processes: ZeroDivisionError: nothing to divide by, line"),
    (Crashes, "division by zero"),
    (EachRow, r"not a tensor \[[48]\]"),
]


@pytest.fixture(scope="module")
def halves():
    """What two processes found of the broken methods, and of a whole one after them."""
    builds = {kind.__name__: partial(small, kind) for kind, _ in ON_TWO} | {"lambda": lambda: small(Whole)}
    return gloo.in_two_processes(builds | {"Whole": partial(small, Whole)})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name", "said"), BROKEN)
def test_a_broken_method_is_found_and_the_sentence_says_what_to_do(kind, name, said):
    with pytest.raises(contract.Broken, match=said):
        contract.CHECKS[name](partial(small, kind))


@pytest.mark.parametrize(("kind", "said"), ON_TWO)
def test_what_holds_on_one_process_only_is_found(halves, kind, said):
    with pytest.raises((contract.Broken, ZeroDivisionError), match=said):
        contract.processes(partial(small, kind), halves[kind.__name__])


def test_a_build_that_no_process_can_import_is_said_to_be_one(halves):
    with pytest.raises(contract.Broken, match="define it at the top of a module"):
        contract.processes(lambda: small(Whole), halves["lambda"])


def test_methods_that_fail_or_end_their_process_hide_no_others_result(halves):
    contract.processes(partial(small, Whole), halves["Whole"])


def test_every_check_has_its_result_whatever_the_others_meet():
    names = ["gradients", "resume", "files", "gpu"]
    whole, crashing = (contract.check(partial(small, kind), names) for kind in (Whole, Crashes))
    assert [(result.name, result.passed) for result in whole] == [(name, True) for name in names]
    assert [(result.name, result.passed) for result in crashing] == [(name, False) for name in names]
    for result in crashing:
        assert "ZeroDivisionError" in result.sentence
        assert "of test_check.py" in result.sentence


def test_a_check_leaves_chance_and_the_runs_seed_as_they_were(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    contract.check(partial(small, Whole), ["gradients"])
    assert torch.equal(torch.rand(1), expected)
    assert os.environ["PL_GLOBAL_SEED"] == "12"


# The command

BROKEN_MODULE = """
from ssl_zoo.method import Method
from ssl_zoo.methods import SimCLR

class Constant(Method):
    def __init__(self, number: int, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def training_loss(self, batch):
        return self.number
"""


@pytest.mark.parametrize("name", ["SimCLR", "DCL", "DCLW", "MoCo", "MoCoV3", "MoCHi", "SwAV", "PixPro", "PixContrast",
                                  "BarlowTwins", "AMCL", "AMCLMoCo", "AMCLBarlowTwins"])
def test_our_methods_are_checked_by_name(name, capsys):
    run(["check", name, "--checks", "gradients"])
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.startswith(f"{name}(")
    assert line.startswith("ok      gradients     Every weight")


def test_a_broken_method_of_the_current_folder_fails_with_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text(BROKEN_MODULE)
    with pytest.raises(SystemExit) as ended:
        run(["check", "broken_module.Constant", "--model.number", "3", "--checks", "gradients", "gpu"])
    assert ended.value.code == "2 of 2 checks failed"
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == "Constant(number=3) on NarrowResNet of 8 features, two views of 16 pixels"
    assert [line[:22].split() for line in lines] == [["FAILED", "gradients"], ["FAILED", "gpu"]]
    assert "Constant.training_loss must return one number with a gradient, not int" in lines[0]


def test_a_recipes_method_is_checked_at_a_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {"model": {"class_path": "MoCo", "init_args": {
        "encoder": {"class_path": "ResNet", "init_args": {"depth": 50}}, "projector": [2048, 128], "queue": 65536,
        "augment": {"views": [{"size": 224, "count": 2, "blur": 0.5, "kernel": 23}]}, "temperature": 0.3,
        "optimizer": {"class_path": "ssl_zoo.optim.LARS", "init_args": {"lr": 1.0}}, "schedule": {}}}, "trainer": {}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["check", "--config", "recipe.yaml", "--checks", "gradients"])
    heading, line = capsys.readouterr().out.splitlines()
    assert "projector=[16, 16], temperature=0.3, queue=20" in heading
    assert heading.endswith("the recipe's views of 16 pixels")
    assert line.startswith("ok")


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "check one method: name a class"),
    (["SimCLR", "--checks", "speed"], "there is no check speed; there are gradients, processes"),
    (["SimCLR", "--trainer.max_epochs", "3"], "ssl-zoo check has no option --trainer.max_epochs"),
    (["Nothing"], "there is no class Nothing in ssl_zoo.methods"),
    (["no_such_module.Align"], "no_such_module"),
])
def test_what_cannot_be_checked_is_refused_in_a_sentence(arguments, said):
    with pytest.raises(SystemExit) as refused:
        run(["check", *arguments])
    assert said in refused.value.code.splitlines()[0]


@pytest.mark.parametrize("gone", ["Connection closed by peer [127.0.0.1]:1", "Read error: Connection reset by peer",
                                  "writev: Broken pipe"])
def test_the_cause_comes_before_what_the_other_process_sees_of_it(gone):
    found = [gloo.Failure(f"RuntimeError: {gone}"), gloo.Failure("ZeroDivisionError: nothing to divide by")]
    for one in (found, found[::-1]):
        with pytest.raises(contract.Broken, match="on one of two processes: ZeroDivisionError"):
            gloo.processes(partial(small, SimCLR, projector=(16, 8)), one)
