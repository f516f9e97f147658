"""Checkpoints are whole, of this run, and enough to go on from wherever a run was ended."""

import os
import resource
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ssl_zoo.data import ArrayImages
from ssl_zoo.evaluation import Evaluation
from ssl_zoo.evaluation.callback import Report
from ssl_zoo.files import claim, free, put, whole
from ssl_zoo.own_code import raised_at
from ssl_zoo.paths import check_whole
from ssl_zoo.saving import Checkpoints, LastCheckpoint, WholeCheckpoints, forgiving, last_good
from ssl_zoo.stopping import SafeStop
from tests.conftest import same, simclr, state, trainer

BATCHES = 7   # of an epoch


@contextmanager
def full_disk(size):
    """No file can grow above so many bytes: writing fails in the middle, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Ends(pl.Callback):
    """Ends a run at its n-th batch of training or of evaluation, as a SIGKILL would: nothing else is saved."""

    def __init__(self, training=0, evaluation=0, by=KeyError):
        self.left, self.by = {"training": training, "evaluation": evaluation}, by

    def count(self, kind):
        self.left[kind] -= 1
        if not self.left[kind] and self.by:
            raise self.by
        return not self.left[kind]

    def on_train_batch_end(self, trainer, *_):
        if self.count("training"):
            trainer.should_stop = True

    def on_validation_batch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.count("evaluation")


def run(folder, arrays, *callbacks, resume=None, **options):
    """A run of three epochs of seven batches, each evaluated: its weights, the columns of its report, its trainer."""
    report = Report()
    running = trainer(folder, Evaluation(["nearest_class_mean", "health"]), report, *callbacks, LastCheckpoint(),
                      **{"plugins": [WholeCheckpoints()], "enable_checkpointing": True, "max_epochs": 3,
                         "num_sanity_val_steps": -1} | options)
    method = simclr()
    with suppress(KeyError):
        running.fit(method, datamodule=ArrayImages(str(arrays), batch_size=8), ckpt_path=resume)
    return state(method), report.columns, running


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


# A file

def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "report"
    path.write_text("old")
    with suppress(KeyError), whole(path) as half:
        half.write_text("ne")
        raise KeyError
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["report"])
    with whole(path) as half:
        half.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", ["report"])
    with full_disk(1000), pytest.raises(OSError, match=f"File too large: '{path}'"):
        put(path, 2000 * "a")
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", ["report"])


def test_two_callers_never_get_one_folder(tmp_path, monkeypatch):
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_old").mkdir()
    assert claim(tmp_path).name == "version_4"
    look = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))   # what was there before the other one had made its folder
    (tmp_path / "version_0").mkdir()
    assert claim(tmp_path).name == "version_1"
    monkeypatch.setattr(Path, "glob", look)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        claim(tmp_path / "file")


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    assert free(tmp_path / "encoder.json") == tmp_path / "encoder.json"
    (tmp_path / "encoder.json").touch()
    (tmp_path / "encoder-1.json").symlink_to(tmp_path / "nowhere")
    assert free(tmp_path / "encoder.json") == tmp_path / "encoder-2.json"


# A checkpoint

def test_a_checkpoint_goes_through_no_other_folder_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    saver = WholeCheckpoints()
    for value in (1, 2):
        saver.save_checkpoint({"a": torch.tensor(value)}, tmp_path / "new" / "last.ckpt")
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["last.ckpt"]
    assert saver.load_checkpoint(tmp_path / "new" / "last.ckpt")["a"] == 2


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(tmp_path):
    saver, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    saver.save_checkpoint({"a": torch.ones(4)}, path)
    for floats in (100_000, 1_000):   # its first bytes do not fit; nor does what is written when the file is closed
        with full_disk(3000), pytest.warns(UserWarning, match=rf"{path} could not be written \(File too large\): make "
                                                              rf"room; the last good checkpoint is {path}"):
            saver.save_checkpoint({"a": torch.ones(floats)}, path)
        assert os.listdir(tmp_path) == ["last.ckpt"]
        assert torch.load(check_whole(path))["a"].tolist() == [1] * 4
    saver.remove_checkpoint(path)     # what Lightning does once a better one is saved, as it thinks
    assert path.exists()
    saver.save_checkpoint({"a": torch.zeros(4)}, path)
    assert not saver.failed
    with pytest.raises(AttributeError):
        saver.save_checkpoint({"a": lambda: 0}, tmp_path / "other.ckpt")   # no fault of the disk
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_only_a_full_disk_is_told_to_make_room(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    saver = WholeCheckpoints()
    monkeypatch.setattr(torch, "save", refused)
    with pytest.warns(UserWarning, match=r"last.ckpt could not be written \(Permission denied\); no checkpoint had"):
        saver.save_checkpoint({"a": 1}, tmp_path / "last.ckpt")


@pytest.mark.parametrize(("rank", "said"), [(0, "; no checkpoint had been saved yet"), (1, "")])
def test_only_the_process_that_saves_says_which_checkpoint_is_good(rank, said):
    strategy = SimpleNamespace(checkpoint_io=WholeCheckpoints())
    assert last_good(SimpleNamespace(strategy=strategy, ckpt_path=None, is_global_zero=not rank)) == said


def test_a_checkpoint_of_another_run_is_neither_replaced_nor_removed(tmp_path):
    theirs, saver = tmp_path / "best.ckpt", WholeCheckpoints()
    theirs.write_text("theirs")
    with pytest.warns(UserWarning, match="best.ckpt is of another run and stays: this run's is .*best-1.ckpt"):
        saver.save_checkpoint({"a": 1}, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saver.save_checkpoint({"a": 2}, theirs)
    assert torch.load(tmp_path / "best-1.ckpt")["a"] == 2
    for _ in range(2):
        saver.remove_checkpoint(theirs)
    assert os.listdir(tmp_path) == ["best.ckpt"]
    assert theirs.read_text() == "theirs"


# A run

def test_a_run_on_a_full_disk_goes_on_or_stops(tmp_path, arrays):
    with pytest.warns(UserWarning, match="could not be written"), full_disk(20_000):
        _, _, running = run(tmp_path / "goes on", arrays, Checkpoints(every_n_steps=2), SafeStop(), limit_val_batches=0,
                            max_epochs=1)
    assert running.global_step == BATCHES
    with pytest.warns(UserWarning, match="could not be written"), full_disk(20_000), \
            pytest.raises(OSError, match="could not be written"):
        run(tmp_path / "stops", arrays, Checkpoints(every_n_steps=2, full_disk="stop"), SafeStop(), limit_val_batches=0)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arrays):
    return {each: run(tmp_path_factory.mktemp("whole"), arrays, val_check_interval=each)[:2] for each in (1.0, 3)}


@pytest.mark.parametrize("each", [1.0, 3])
@pytest.mark.parametrize("batch", [1, 4, 6])   # of two for each evaluation
def test_a_run_killed_in_an_evaluation_trains_nothing_twice_and_evaluates_it_again(tmp_path, arrays, uninterrupted,
                                                                                   each, batch):
    _, columns, killed = run(tmp_path / "killed", arrays, Ends(evaluation=batch), val_check_interval=each)
    assert last(tmp_path / "killed")["global_step"] == killed.global_step
    assert len(columns) == 1 + (batch - 1) // 2   # the untrained encoder's, and of the evaluations before
    weights, columns, _ = run(tmp_path / "resumed", arrays, resume=tmp_path / "killed/checkpoints/last.ckpt",
                              val_check_interval=each)
    assert same(weights, uninterrupted[each][0])
    assert columns == uninterrupted[each][1]


def test_a_run_saves_every_n_steps_and_loses_no_more(tmp_path, arrays, uninterrupted):
    run(tmp_path / "killed", arrays, Checkpoints(every_n_steps=2), Ends(training=12))   # before its twelfth is saved
    assert last(tmp_path / "killed")["global_step"] == 10
    assert os.listdir(tmp_path / "killed/checkpoints") == ["last.ckpt"]
    weights, columns, _ = run(tmp_path / "resumed", arrays, resume=tmp_path / "killed/checkpoints/last.ckpt")
    assert same(weights, uninterrupted[1.0][0])
    assert columns == uninterrupted[1.0][1]
    with pytest.raises(ValueError, match="every_n_steps counts from 1, and is 0"):
        Checkpoints(every_n_steps=0)


@pytest.mark.parametrize("batch", [10, 14])
def test_a_run_that_ends_within_an_epoch_goes_on_with_the_rest_of_it(tmp_path, arrays, uninterrupted, batch):
    run(tmp_path / "ended", arrays, Ends(training=batch, by=None), limit_val_batches=0)
    assert last(tmp_path / "ended")["global_step"] == batch
    weights, _, _ = run(tmp_path / "resumed", arrays, resume=tmp_path / "ended/checkpoints/last.ckpt")
    assert same(weights, uninterrupted[1.0][0])


def test_accumulated_gradients_are_not_cut_in_two(tmp_path, arrays):
    whole, _, _ = run(tmp_path / "whole", arrays, limit_val_batches=0, accumulate_grad_batches=3)
    run(tmp_path / "killed", arrays, Checkpoints(every_n_steps=2), Ends(training=7 + 5), limit_val_batches=0,
        accumulate_grad_batches=3)
    assert last(tmp_path / "killed")["global_step"] == 4   # of 3, 3 and 1 batches, and 3
    weights, _, _ = run(tmp_path / "resumed", arrays, resume=tmp_path / "killed/checkpoints/last.ckpt",
                        limit_val_batches=0, accumulate_grad_batches=3)
    assert same(weights, whole)


# A logger

class Full(Logger):
    """A logger whose disk is full, as TensorBoard's says it: the same error again, behind one of Lightning's."""

    name, version = "full", 0

    def __init__(self):
        super().__init__()
        self.calls, self.error = 0, OSError(28, "No space left on device")

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step):
        self.calls += 1
        try:
            raise self.error
        except OSError as error:
            raise ValueError("you tried to log 0.3 which is currently not supported") from error

    def finalize(self, status):
        raise self.error


def test_a_run_goes_on_without_the_curves_of_a_logger_that_cannot_write(tmp_path, arrays):
    logger = Full()
    with forgiving([logger]), pytest.warns(UserWarning, match=r"Full cannot write its curves \(No space left on devic"
                                                              r"e\): the run goes on, and they end here"):
        _, _, running = run(tmp_path, arrays, logger=logger, log_every_n_steps=1, max_epochs=1)
    assert running.global_step == BATCHES
    assert logger.calls == 1
    other = Full()
    other.error = KeyError("a mistake")
    with forgiving([other]), pytest.raises(KeyError, match="a mistake"):
        other.finalize("success")


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "Connection refused"), TimeoutError("timed out"),
                                   OSError(101, "Network is unreachable"), OSError("HTTPSConnectionPool: refused")])
def test_a_logger_that_is_not_reached_for_a_while_gets_what_is_logged_later(error):
    logger = Full()
    logger.error = error
    with forgiving([logger]):
        with pytest.warns(UserWarning, match="Full cannot be reached .*: the run goes on, and tries again at each"):
            logger.log_metrics({}, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logger.log_metrics({}, 1)                      # said once
        assert logger.calls == 2


def test_no_traceback_of_tensorboards_thread_is_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: printed.append(failure.exc_type))
    logger = TensorBoardLogger(tmp_path)
    with full_disk(1000), forgiving([logger]), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(100):
            logger.log_metrics({"loss": 0.5}, step)
            if not step % 10:
                logger.save()
        other = threading.Thread(target=lambda: 1 / 0)
        other.start()
        other.join()
    said = [str(one.message) for one in warned if "curves" in str(one.message)]
    assert said == ["TensorBoardLogger cannot write its curves (File too large): the run goes on, and they end here"]
    assert printed == [ZeroDivisionError]


def test_a_line_of_ones_own_is_found_through_errors_that_cause_each_other():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert raised_at(first) == ""
