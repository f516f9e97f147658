"""The command export."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.devices import ENCODER
from ssl_zoo.cli.messages import TRUST, Options
from ssl_zoo.paths import check_encoder, description, export_path, is_exported, mapping, name_and_weights


def export(arguments: Sequence[str]) -> None:
    """Write an encoder as its file's name ends, and a model card beside it.

    .safetensors (for ssl_zoo, with a .json), .pth (the state dict of torchvision's or timm's own model), .onnx or .pt2
    (torch.export). What other programs read is compared with the encoder first.
    """
    options = parser().parse_args(arguments)
    given: str = options.encoder
    check_encoder(given)
    if options.size is not None and options.size < 1:
        raise ValueError(f"--size is 1 or more, not {options.size}")
    if not given.endswith(".ckpt"):
        if options.output is None:
            raise ValueError("--output is missing: name the file to write, such as encoder.onnx")
        if not is_exported(given) and not name_and_weights(given)[1]:
            raise ValueError(f"{given} by itself is untrained: name its weights too, as in {given}=weights.pth")
    path = export_path(options.output or Path(given).with_suffix(".safetensors"))
    from ssl_zoo.evaluation.report import sentences
    from ssl_zoo.export import save_encoder
    encoder, known = of_checkpoint(options) if given.endswith(".ckpt") else of_file(options)
    known["protocols"] = {**sentences(known.get("metrics", {})), **known.get("protocols", {})}
    if options.size not in (None, known.get("size")):   # for which nobody has recorded them
        encoder.preprocessing = {name: value for name, value in encoder.preprocessing.items()
                                 if name not in ("resize", "crop")}
    known["size"] = options.size or known.get("size")
    known["license"] = options.license or known.get("license")
    print(save_encoder(encoder, path, **known))


def parser() -> Options:
    parser = Options("export", export.__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODER)
    parser.add_argument("--output", type=Path, help="file to write; its ending says how. Left out for a checkpoint, "
                        "it is the checkpoint's name with .safetensors")
    parser.add_argument("--size", type=int, help="side in pixels of the images with which the file is compared, and "
                        "which it takes where the encoder takes one size only; that of the run if left out")
    parser.add_argument("--license", help="of the weights, for the model card, such as apache-2.0; unknown if left out")
    parser.add_argument("--trust", metavar="CLASS", action="append", default=[], help=TRUST)
    return parser


def of_checkpoint(options: Namespace) -> tuple[Any, dict[str, Any]]:
    """The encoder of a training checkpoint, and what its run has recorded."""
    from ssl_zoo.checkpoints import load_method, read_checkpoint
    from ssl_zoo.evaluation.report import metrics, whole_recipe
    from ssl_zoo.provenance import left_by
    method, content = load_method(options.encoder, options.trust), read_checkpoint(options.encoder)
    states = content.get("callbacks", {}).values()           # none where only the weights were saved
    report: Any = next((state for state in states if isinstance(state, dict) and {"columns", "size"} <= state.keys()),
                       {"columns": {}, "size": None})
    folder = Path(options.encoder).resolve().parents[1]
    return method.evaluated, {
        "size": report["size"], "recipe": whole_recipe(folder, method), "origin": left_by(folder),
        "metrics": dict(metrics(report["columns"], content["epoch"] + 1, content["global_step"]))}


def of_file(options: Namespace) -> tuple[Any, dict[str, Any]]:
    """An exported encoder, with what its description says, or a model with weights of others, of which none does."""
    from ssl_zoo.checkpoints import read_encoder
    encoder = read_encoder(options.encoder, options.trust)
    said = description(options.encoder) if is_exported(options.encoder) else {}
    return encoder, {"size": encoder.preprocessing.get("size"), "recipe": said.get("recipe"),
                     "license": said.get("license"), "origin": mapping(said, "provenance") or None,
                     "metrics": mapping(said, "metrics"), "protocols": mapping(said, "protocols")}
