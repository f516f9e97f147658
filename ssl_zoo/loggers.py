"""What a run says at its end of each of its loggers: what it is called, and where its curves are."""

from pathlib import Path
from typing import Any

NAMES = {"TensorBoardLogger": "TensorBoard", "CSVLogger": "curves as CSV", "WandbLogger": "Weights & Biases",
         "MLFlowLogger": "MLflow"}


def where(logger: Any) -> tuple[str, str]:
    """The name of a logger and its folder, file or address; an offline run of W&B as the command that sends it."""
    kind = type(logger).__name__
    name = NAMES.get(kind, kind)
    if kind == "WandbLogger":
        return name, of_wandb(logger.experiment)
    if kind == "MLFlowLogger":
        return name, f"{getattr(logger, '_tracking_uri', '')}, run {logger.run_id}"
    folder = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    if kind == "CSVLogger" and folder:
        return name, str(Path(folder) / "metrics.csv")
    return name, str(folder or f"{logger.name}, {logger.version}")


def of_wandb(run: Any) -> str:
    """The address of a run of W&B, which has none while it is offline."""
    address, files = getattr(run, "url", None), getattr(run, "dir", None)
    if isinstance(address, str) and address:
        return address
    if not isinstance(files, str):     # wandb disabled
        return "nowhere: it is disabled"
    folder = Path(files).parent
    return f"wandb sync {folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}"
