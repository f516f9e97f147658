"""Loggers of others: what a run says of them at its end, and what they are shown."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ssl_zoo.cli.messages import parse_error
from ssl_zoo.loggers import where
from ssl_zoo.pictures import publish


class WandbLogger:   # as Lightning's, whose package is large
    def __init__(self, **run):
        self.experiment, self.shown = SimpleNamespace(**run), []

    def log_image(self, key, images):
        self.shown.append((key, images))


class MLFlowLogger:
    _tracking_uri, run_id = "file:./mlruns", "1a2b"


class MyLogger:
    name, version, save_dir = "mine", "7", None


def test_each_logger_is_called_by_its_name_with_the_place_of_its_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "wandb/offline-run-1/files"
    for logger, said in (
            (CSVLogger("runs", "x", version=3), ("curves as CSV", "runs/x/version_3/metrics.csv")),
            (TensorBoardLogger("runs", "x", version=3), ("TensorBoard", "runs/x/version_3")),
            (WandbLogger(url=None, dir=str(here)), ("Weights & Biases", "wandb sync wandb/offline-run-1")),
            (WandbLogger(url=None, dir="/tmp/run/files"), ("Weights & Biases", "wandb sync /tmp/run")),
            (WandbLogger(url="https://wandb.ai/a/b", dir=str(here)), ("Weights & Biases", "https://wandb.ai/a/b")),
            (WandbLogger(), ("Weights & Biases", "nowhere: it is disabled")),
            (MLFlowLogger(), ("MLflow", "file:./mlruns, run 1a2b")), (MyLogger(), ("MyLogger", "mine, 7"))):
        assert where(logger) == said


def test_pictures_are_shown_to_a_logger_that_takes_images_and_saved_for_all(tmp_path):
    logger, picture = WandbLogger(), Image.new("RGB", (4, 4))
    for one in (logger, MyLogger(), None):
        publish(picture, "views", tmp_path / "run", one, 3)
    assert logger.shown == [("views", [picture])]
    assert Path(tmp_path / "run/views.png").is_file()


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_logger_whose_package_is_missing_says_how_to_get_it(package):
    message = (f'Parser key "trainer.logger":\n  Does not validate against any of the Union subtypes\n  - Problem with '
               f"given class_path 'pytorch_lightning.loggers.SomeLogger':\n    Requirement '{package}>=1.0.0' not met. "
               f"HINT: Try running `pip install -U '{package}>=1.0.0'`\n  - Expected a <class 'bool'>")
    assert parse_error(message).endswith(f"the package {package} is not installed: pip install {package}")
