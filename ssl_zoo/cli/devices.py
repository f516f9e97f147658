"""What the commands that use an encoder have in common: the encoder, where it runs, and their options."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from ssl_zoo.cli.messages import TRUST, Options
from ssl_zoo.files import free
from ssl_zoo.paths import check_encoder

ENCODER = ("an exported encoder (.safetensors), a checkpoint (.ckpt), or a model of torchvision or timm with weights, "
           "as in resnet50=resnet50.pth")
IMAGES = ("a folder, with all below it; an image; a pattern in quotation marks, as in 'my_images/**/*.jpg'; a text "
          "file with a path in each line; or shards: a folder, a .tar, an index")


def add_options(parser: Options) -> None:
    """The options of a command that encodes images."""
    parser.add_argument("--size", type=int, help="side of the images in pixels; that of the encoder's last evaluation "
                        "if left out")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode files; 2 if left out")
    parser.add_argument("--device", help="where to encode; the GPU if there is one")
    parser.add_argument("--trust", metavar="CLASS", action="append", default=[], help=TRUST)


def require_options(options: Namespace) -> None:
    """Refuse what cannot be before anything heavy is imported."""
    check_encoder(options.encoder)
    for name, low in (("size", 1), ("workers", 0)):
        if (value := getattr(options, name)) is not None and value < low:
            raise ValueError(f"--{name} is {low} or more, not {value}")


def encoder_on_device(options: Namespace) -> Any:
    from ssl_zoo.checkpoints import read_encoder
    return read_encoder(options.encoder, options.trust).to(device(options.device))


def device(wanted: str | None) -> str:
    """The device to work on: the one that is wanted, or the GPU if there is one."""
    import torch
    found = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:   # torch's own sentences are about its build
        raise ValueError(f"there is no {found} on this machine: leave --device out") from error
    return found


def reuse(parser: Options) -> None:
    parser.add_argument("--features", type=Path, default=Path("evaluation/features"), help="folder that keeps the "
                        "features, which a second call reuses")


def save(picture: Any, path: Path) -> None:
    """Write a picture under the first free name, and print it."""
    path = free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    print(path)
