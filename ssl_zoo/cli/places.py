"""Where a run leaves its files, which no run before it has, and from which checkpoint it goes on."""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_zoo.checkpoints import check_resumable, read_checkpoint
from ssl_zoo.distributed import run_folder
from ssl_zoo.files import claim, version
from ssl_zoo.stopping import fresh

LEFT = ("config.yaml", "report.txt", "encoder.safetensors", "encoder.json", "metrics.csv", "checkpoints/*.ckpt")


def default(place: Path, logger: Any) -> str | None:
    """Lightning's default_root_dir: the run's folder where no logger makes one, and else where a job of SLURM goes on.

    A job that SLURM has started again must find its checkpoint, and no other job may.
    """
    first = logger[0] if isinstance(logger, list) and logger else logger
    if first is False or isinstance(first, Logger) and getattr(type(first), "log_dir", None) is Logger.log_dir:
        # the other processes write nothing, and look for earlier runs in the same place
        return str(place / "version_0" if getattr(rank_zero_only, "rank", 0) else claim(place))
    return str(place / f"slurm_{job}") if (job := slurm_job()) else None


def give_back(folder: str | None) -> None:
    """Remove a folder of `default` in which there is nothing."""
    if folder:
        with suppress(OSError):
            os.removedirs(folder)


def slurm_job() -> str:
    """The job of SLURM that this process belongs to, the same after SLURM has started it again; empty for none."""
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return ""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def take(trainer: pl.Trainer) -> None:
    """Make the folder of a run, in one step, so that no other run has it.

    Raises:
        ValueError: the folder that the user has named is one of another run.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:   # type: ignore[attr-defined]
        return
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if getattr(logger, "_version", "") is None:   # TensorBoard's and the CSV logger's look, and make it later
            logger._version = version(claim(logger.root_dir))
    folder = run_folder(trainer)
    if folder is not None and not fresh(folder) and any(True for name in LEFT for _ in folder.glob(name)):
        raise ValueError(f"{folder} has an earlier run in it, which would be overwritten: leave out the logger's "
                         "version, or name another folder with --trainer.default_root_dir")


# The checkpoint

def newest(trainer: pl.Trainer) -> Path | None:
    """The newest whole checkpoint of the newest run in the recipe's folder; what is passed over is said.

    Newest is the one of most steps: times change when files are copied.
    """
    for run in sorted(own_place(trainer).glob("version_*"), key=version, reverse=True):
        steps: dict[Path, tuple[int, float]] = {}
        for path in [*run.glob("checkpoints/*.ckpt"), *requeued(trainer)]:
            try:
                check_resumable(path)
                steps[path] = read_checkpoint(path)["global_step"], path.stat().st_mtime
            except (ValueError, OSError) as error:
                passed_over(str(error) if str(path) in str(error) else f"{path}: {error}")
        for path in sorted(steps, key=steps.__getitem__, reverse=True):
            try:
                require_undamaged(path)
                return path
            except ValueError as error:
                passed_over(str(error))
    return None


def require_undamaged(path: str | Path) -> None:
    """Refuse a checkpoint with other bytes than were written, which torch would load."""
    try:
        with ZipFile(path) as file:
            wrong = file.testzip()
    except BadZipFile:
        wrong = "it"
    if wrong:
        raise ValueError(f"{path} is damaged: not all of its bytes are those that were written; take another")


def passed_over(why: str) -> None:
    if not getattr(rank_zero_only, "rank", 0):
        warnings.warn(f"passed over: {why}", stacklevel=3)


def last(trainer: pl.Trainer) -> Path:
    """As `newest`, which must be there."""
    if (found := newest(trainer)) is None:
        raise FileNotFoundError(f"--ckpt_path last: there is no whole checkpoint in {own_place(trainer)}; leave it out "
                                "to start, or give --resume auto in its place")
    return found


def best(trainer: pl.Trainer) -> Path:
    """The checkpoint that the newest run calls its best by a number that a ModelCheckpoint watches."""
    states = read_checkpoint(last(trainer)).get("callbacks", {}).values()
    named = [Path(state["best_model_path"]) for state in states
             if isinstance(state, Mapping) and state.get("monitor") and state.get("best_model_path")]
    if found := [path for path in named if path.is_file()]:
        return found[0]
    raise FileNotFoundError(f"--ckpt_path best: the newest run in {own_place(trainer)} watches no number, or its best "
                            "is gone: list a ModelCheckpoint with a monitor in trainer.callbacks")


def hpc(trainer: pl.Trainer) -> Path:
    """The newest checkpoint that a job of SLURM left before it was to start again."""
    place = own_place(trainer)
    found = requeued(trainer) or [*place.glob("slurm_*/hpc_ckpt_*.ckpt")]
    if not found:
        raise FileNotFoundError(f"--ckpt_path hpc: there is no hpc_ckpt_*.ckpt in {trainer.default_root_dir} or in "
                                f"{place}/slurm_*")
    return max(found, key=lambda path: path.stat().st_mtime)


def own_place(trainer: pl.Trainer) -> Path:
    """The folder of all runs of the recipe."""
    folder = run_folder(trainer)
    assert folder is not None
    return folder.parent


def requeued(trainer: pl.Trainer) -> list[Path]:
    return [*Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")] if slurm_job() else []


FINDERS: dict[str, Callable[[pl.Trainer], Path | None]] = {"auto": newest, "last": last, "best": best, "hpc": hpc}
