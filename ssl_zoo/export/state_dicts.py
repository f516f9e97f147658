"""The backbone alone, as torchvision or timm load it: a state dict under their own names, without a classifier."""

from pathlib import Path
from typing import Any

import torch

from ssl_zoo import encoders
from ssl_zoo.export.usage import Usage, plain

NORMALISED = "with torch.no_grad():\n    features = net((images / 255 - mean) / std)"


def write(encoder: encoders.Encoder, path: Path, said: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    """Write the file, and compare the model that its own library makes of it with the encoder.

    Raises:
        ValueError: neither library has the model, or its features are others.
    """
    if type(encoder) not in (encoders.ResNet, encoders.Torchvision, encoders.Timm):
        raise ValueError(f"neither torchvision nor timm has a {type(encoder).__name__}, so that nothing could read its "
                         ".pth: export it as .onnx, .pt2 or .safetensors")
    size = said["preprocessing"]["size"]
    encoder = plain(encoder, size)
    library, lines = made_by(encoder)
    torch.save(encoder.backbone.state_dict(), path)
    mean, std = (f"{name} = torch.tensor({said['preprocessing'][name]})[:, None, None]" for name in ("mean", "std"))
    usage = Usage(f"import torch\nimport {library}", "\n".join([*lines, "net.eval()", mean, std]), NORMALISED)
    usage.require_equal(encoder, path, [(1, size, size), (3, size, size)])
    own = {"library": library, "input": "what the library's model reads", "normalisation": "to be done before"}
    return said | {"library": library, "preprocessing": said["preprocessing"] | own}, usage


def made_by(encoder: encoders.Encoder) -> tuple[str, list[str]]:
    """The library that has the encoder's backbone, and the lines that make it and load a file into it."""
    net: Any = encoder.backbone
    if isinstance(encoder, encoders.Timm):
        known: dict[str, Any] = {"img_size": encoder.arguments["image_size"], "num_classes": 0,
                                 "in_chans": encoder.channels if encoder.channels != 3 else None,
                                 "dynamic_img_size": getattr(net, "dynamic_img_size", False) or None}
        options = "".join(f"{name}={value}, " for name, value in known.items() if value is not None)
        return "timm", [f'net = timm.create_model("{encoder.arguments["name"]}", {options}checkpoint_path=FILE)']
    load = "net.load_state_dict(torch.load(FILE, weights_only=True))"
    if isinstance(encoder, encoders.ResNet):
        return "torchvision", [f"net = torchvision.models.resnet{encoder.arguments['depth']}()",
                               "net.fc = torch.nn.Identity()", *of_resnet(encoder), load]
    lines = [f'net = torchvision.models.get_model("{encoder.arguments["name"]}")',
             f'net.set_submodule("{encoder.classifier}", torch.nn.Identity())']
    lines += ["net.transform_input = True"] * hasattr(net, "transform_input")
    return "torchvision", [*lines, *first_convolution(encoder), load]


def of_resnet(encoder: encoders.ResNet) -> list[str]:
    net: Any = encoder.backbone
    small = encoder.arguments["small_images"]
    stem = [f"net.conv1 = torch.nn.{net.conv1}"] if small or encoder.channels != 3 else []
    return stem + ["net.maxpool = torch.nn.Identity()"] * small


def first_convolution(encoder: encoders.Encoder) -> list[str]:
    """The line that gives a net its first convolution for images of other channels."""
    if encoder.channels == 3:
        return []
    name, first = next((name, module) for name, module in encoder.backbone.named_modules()
                       if isinstance(module, torch.nn.Conv2d))
    return [f'net.set_submodule("{name}", torch.nn.{first})']
