"""The command export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.messages import TRUST, Options
from ssl_zoo.paths import check_whole


def export(arguments: Sequence[str]) -> None:
    """Write the encoder of a training checkpoint as .safetensors, and what it is as .json."""
    parser = Options("export", export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file that ssl-zoo fit left")
    parser.add_argument("--output", type=Path, help="file to write; the checkpoint's name if left out")
    parser.add_argument("--trust", metavar="CLASS", action="append", default=[], help=TRUST)
    options = parser.parse_args(arguments)
    checkpoint = check_whole(options.checkpoint)
    from ssl_zoo.checkpoints import load_method, read_checkpoint
    from ssl_zoo.evaluation.report import metrics, whole_recipe
    from ssl_zoo.export import save_encoder
    from ssl_zoo.provenance import left_by
    method, content = load_method(checkpoint, options.trust), read_checkpoint(checkpoint)
    states = content.get("callbacks", {}).values()           # none where only the weights were saved
    report: Any = next((state for state in states if isinstance(state, dict) and {"columns", "size"} <= state.keys()),
                       {"columns": {}, "size": None})
    folder = checkpoint.resolve().parents[1]
    print(save_encoder(method.evaluated, options.output or checkpoint.with_suffix(".safetensors"), size=report["size"],
                       recipe=whole_recipe(folder, method), origin=left_by(folder),
                       metrics=dict(metrics(report["columns"], content["epoch"] + 1, content["global_step"]))))
