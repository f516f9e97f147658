"""Encoders: images in, one feature vector or one feature map per image out. They normalise for themselves."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ssl_zoo import published
from ssl_zoo.weights import load_strictly, read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROUNDING = 1e-3   # by which a resize leaves [0, 1]


class Encoder(nn.Module, ABC):
    """[B, C, H, W] images, uint8 or float in [0, 1] -> [B, dim] features. Of 3 channels, also [B, 1, H, W].

    A subclass builds `backbone`, sets `dim` and `arguments`, and implements `maps`.

    Args:
        mean: mean of each channel, subtracted from images in [0, 1].
        std: standard deviation of each channel; images are divided by it after the mean is subtracted.
        weights: file to start from: an exported encoder (.safetensors), or the backbone's weights as torchvision, timm
            or the authors of a method publish them (.pth, .ckpt), in which it is found; heads and classifiers are
            left. Random weights by default. The first convolution of weights for other channels is repeated over the
            encoder's, divided by how often, or summed for a single channel.
        channels: of the images, C.
    """

    classifier = "fc"   # the backbone's name for the classifier, which files have and encoders do not
    backbone: nn.Module
    mean: Tensor
    std: Tensor
    dim: int
    arguments: dict[str, Any]   # plain values that build this encoder again: its constructor's, without `weights`
    preprocessing: dict[str, Any]   # how files became its images (levels, background, size), as far as that is known

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
                 weights: str | None = None, channels: int = 3):
        super().__init__()
        mean, std = of_channels(mean, channels, "mean"), of_channels(std, channels, "std")
        if min(std) <= 0:
            raise ValueError(f"an encoder's std must be above 0, not {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.arguments = {"mean": list(mean), "std": list(std)} | ({"channels": channels} if channels != 3 else {})
        self.weights, self.preprocessing = weights, {}
        self.seen = False   # whether float images have been looked at

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.mean)

    def normalize(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in ((1, 3) if self.channels == 3 else (self.channels,)):
            gray = " or [B, 1, H, W]" * (self.channels == 3)
            raise ValueError(f"an encoder reads images [B, {self.channels}, H, W]{gray}, not {list(images.shape)}")
        images = images / 255 if images.dtype == torch.uint8 else self.checked(images)
        return ((images - self.mean) / self.std).to(self.mean.dtype)   # one channel becomes three

    def checked(self, images: Tensor) -> Tensor:
        """The images, if they are floats in [0, 1].

        Reading values makes the host wait for the device: while training, only the first images are read.
        """
        if not images.is_floating_point():
            raise ValueError(f"an encoder reads images as uint8, or as floats in [0, 1], not as {images.dtype}")
        if torch.compiler.is_compiling() or type(images) is not Tensor or not images.numel():
            return images                                  # there are no values: a subclass may be FakeTensor
        if not (self.training and self.seen):
            self.seen = True
            low, high = torch.stack(images.detach().aminmax()).tolist()
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):
                raise ValueError(f"an encoder reads floats in [0, 1], and these images go from {low:.4g} to "
                                 f"{high:.4g}: give 0..255 as uint8, leave out Normalize, which the encoder does "
                                 "itself, and clamp what a resize overshot")
        return images

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """[B, dim, h, w]: the last feature map, before pooling."""

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps [B, C, h, w] of all stages, of which `maps` is the last; it alone where they are unknown."""
        return [self.maps(images)]

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean((2, 3))

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile this encoder in place, as torch does, and `maps` too, which some methods call.

        No name in its state dict changes, and neither a copy nor a file is compiled.
        """
        super().compile(*args, **options)
        self.__dict__["maps"] = torch.compile(self.maps, *args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "maps"}   # bound to this one

    def start(self) -> None:
        """Load `weights`, if any. A subclass calls this at the end of its constructor."""
        if self.weights is None:
            return
        state, prefix = read_state(self.weights), "backbone."

        def whole(around: str) -> bool:   # an encoder of ssl_zoo for images of these channels
            return len(state.get(f"{around}mean", ())) == self.channels and f"{around}std" in state

        if not whole(""):
            prefix, backbone = published.taken(self.backbone, state, self.weights, self.classifier)
        if whole(around := prefix.removesuffix("backbone.")):   # alone, or in a checkpoint
            own = {name.removeprefix(around): value for name, value in state.items() if name.startswith(around)}
            load_strictly(self, own, self.weights)
            self.arguments |= {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        else:
            load_strictly(self.backbone, backbone, self.weights)


def of_channels(values: Sequence[float], channels: int, name: str, own: bool = False) -> list[float]:
    """A number for each channel; those of ImageNet's colours, or the model's `own`, are also spread over others."""
    if channels < 1:
        raise ValueError(f"an encoder reads images of at least 1 channel, not {channels}")
    if len(values) == channels:
        return list(values)
    if not own and tuple(values) not in (IMAGENET_MEAN, IMAGENET_STD):
        raise ValueError(f"an encoder of {channels} channels has as many numbers in its {name}, not {len(values)}")
    if channels == 1:
        return [sum(values) / len(values)]
    return [values[channel % len(values)] for channel in range(channels)]


def read_channels(net: nn.Module, channels: int) -> None:
    """Give a net a first convolution for images of other channels, at random as torchvision's are."""
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if channels == first.in_channels:
        return
    options: dict[str, Any] = {name: getattr(first, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    other = nn.Conv2d(channels, first.out_channels, **options, bias=first.bias is not None)
    nn.init.kaiming_normal_(other.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(name, other)


@contextmanager
def evaluation_mode(encoder: Encoder) -> Iterator[None]:
    """Run a block in evaluation mode, without gradients or autocast, and then restore the mode of every module.

    A compiled encoder runs uncompiled: its features are those of its export, and no batch size is compiled anew.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    stance: Any = nullcontext() if encoder._compiled_call_impl is None else torch.compiler.set_stance("force_eager")
    encoder.eval()
    try:
        with stance, torch.no_grad(), torch.autocast(encoder.mean.device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_size(encoder: Encoder, size: int) -> None:
    """Raise a ValueError if the encoder cannot read images of `size` x `size` pixels."""
    try:
        with evaluation_mode(encoder):
            encoder(torch.zeros(2, encoder.channels, size, size, device=encoder.mean.device))
    except (AssertionError, RuntimeError) as error:   # of whatever library the encoder is from
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the encoder does not take images of {size} pixels ({why}): give them another size, or take "
                         "an encoder for images of any size") from error


class _ResNet(Encoder, ABC):
    """The stages that torchvision's ResNet and the narrow one share; not an encoder by itself."""

    def maps(self, images: Tensor) -> Tensor:
        return self.stage_maps(images)[-1]

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        net: Any = self.backbone
        found = [net.maxpool(net.relu(net.bn1(net.conv1(self.normalize(images)))))]
        for name, stage in net.named_children():
            if name.startswith("layer"):
                found.append(stage(found[-1]))
        return found[1:]


class ResNet(_ResNet):
    """A torchvision ResNet without its classifier; `backbone` keeps torchvision's own names.

    Args:
        depth: 18, 34, 50, 101 or 152 layers.
        small_images: 3x3 stride-1 stem and no max-pool, for images of about 32 pixels (SimCLR, app. B.9).
        mean: mean of each channel, subtracted from images in [0, 1].
        std: standard deviation of each channel; images are divided by it after the mean is subtracted.
        weights: file to start from: an exported encoder (.safetensors) or a torchvision state dict (.pth).
        channels: of the images.
    """

    def __init__(self, depth: Literal[18, 34, 50, 101, 152] = 50, small_images: bool = False,
                 mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
                 weights: str | None = None, channels: int = 3):
        super().__init__(mean, std, weights, channels)
        if depth not in (18, 34, 50, 101, 152):
            raise ValueError(f"torchvision has ResNets of 18, 34, 50, 101 and 152 layers, not of {depth}")
        self.arguments |= {"depth": depth, "small_images": small_images}
        backbone = getattr(torchvision.models, f"resnet{depth}")()
        self.dim = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if small_images:
            backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")   # as torchvision does
            backbone.maxpool = nn.Identity()
        read_channels(backbone, channels)
        self.backbone = backbone
        self.start()


class NarrowResNet(_ResNet):
    """A small ResNet for 32-pixel images and a CPU: stages of one basic block, each twice as wide and half as large.

    Args:
        width: channels of the first stage.
        stages: number of stages; the features have width * 2 ** (stages - 1) channels.
        mean: mean of each channel, subtracted from images in [0, 1].
        std: standard deviation of each channel; images are divided by it after the mean is subtracted.
        weights: file to start from: an exported encoder (.safetensors).
        channels: of the images.
    """

    def __init__(self, width: int = 32, stages: int = 3, mean: Sequence[float] = IMAGENET_MEAN,
                 std: Sequence[float] = IMAGENET_STD, weights: str | None = None, channels: int = 3):
        super().__init__(mean, std, weights, channels)
        self.arguments |= {"width": width, "stages": stages}
        self.dim = width * 2 ** (stages - 1)
        self.backbone = nn.Sequential()
        self.backbone.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.backbone.bn1 = nn.BatchNorm2d(width)
        self.backbone.relu = nn.ReLU(inplace=True)
        self.backbone.maxpool = nn.Identity()
        for stage in range(stages):
            inputs, outputs, stride = width * 2 ** max(stage - 1, 0), width * 2 ** stage, min(stage + 1, 2)
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            block = BasicBlock(inputs, outputs, stride, shortcut if stage else None)
            self.backbone.add_module(f"layer{stage + 1}", block)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.start()


class Torchvision(Encoder):
    """Any torchvision classification model by name; its features are the input of its last linear layer.

    Use `ResNet` for a plain ResNet: it has feature maps too.

    Args:
        name: torchvision's name of the model, such as convnext_tiny.
        mean: mean of each channel, subtracted from images in [0, 1].
        std: standard deviation of each channel; images are divided by it after the mean is subtracted.
        weights: file to start from: an exported encoder (.safetensors) or a torchvision state dict (.pth).
        channels: of the images.
    """

    def __init__(self, name: str, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
                 weights: str | None = None, channels: int = 3):
        super().__init__(mean, std, weights, channels)
        names = torchvision.models.list_models(torchvision.models)
        if name not in names:
            close = ", ".join(difflib.get_close_matches(name, names)) or "those of torchvision.models.list_models()"
            raise ValueError(f"torchvision has no classification model named {name}; it has {close}")
        net = torchvision.models.get_model(name)
        if hasattr(net, "transform_input"):
            if channels != 3:
                raise ValueError(f"torchvision's {name} reads images of 3 channels, not of {channels}: choose another "
                                 "model, such as convnext_tiny")
            net.transform_input = True   # GoogLeNet's and Inception's weights were trained on pixels from -1 to 1
        last = [place for place, module in net.named_modules() if isinstance(module, nn.Linear)][-1:]
        if not last:
            raise ValueError(f"torchvision's {name} ends in no linear layer, so that it is unclear where its features "
                             "are; choose another model, such as convnext_tiny")
        self.classifier = last[0]
        self.dim = net.get_submodule(self.classifier).in_features
        net.set_submodule(self.classifier, nn.Identity())
        read_channels(net, channels)
        self.arguments |= {"name": name}
        self.backbone = net
        self.start()

    def maps(self, images: Tensor) -> Tensor:
        raise ValueError(f"ssl_zoo does not know where torchvision's {self.arguments['name']} has its feature maps; "
                         "ResNet and Timm encoders have some")

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))


class Timm(Encoder):
    """Any model of the timm library by name, without its classifier. Needs the extra: pip install ssl_zoo[timm].

    Args:
        name: timm's name of the model, such as vit_small_patch16_224.
        image_size: side in pixels of the images that position embeddings are made for, the model's own by default. For
            views of other sizes the model interpolates them, if it can.
        mean: mean of each channel, subtracted from images in [0, 1]; by default the one that the model's weights were
            trained with.
        std: standard deviation of each channel; images are divided by it after the mean is subtracted. The default is
            again the model's own.
        weights: file to start from: an exported encoder (.safetensors) or a timm state dict.
        channels: of the images.
    """

    def __init__(self, name: str, image_size: int | None = None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, weights: str | None = None, channels: int = 3):
        net = timm_model(name, image_size, channels)
        super().__init__(mean or of_channels(net.pretrained_cfg["mean"], channels, "mean", own=True),
                         std or of_channels(net.pretrained_cfg["std"], channels, "std", own=True), weights, channels)
        self.arguments |= {"name": name, "image_size": image_size}
        if getattr(net, "head_hidden_size", net.num_features) != net.num_features:
            raise ValueError(f"timm's {name} has a layer between its pooling and its classifier, so that its features "
                             f"are no pooled map; choose another model, such as resnet50 or vit_small_patch16_224")
        self.backbone, self.dim, self.classifier = net, net.num_features, net.default_cfg["classifier"]
        self.start()

    def maps(self, images: Tensor) -> Tensor:
        net: Any = self.backbone
        images = self.normalize(images)
        x = net.forward_features(images)
        if x.ndim == 4:                                          # a convolutional net; channels last in some
            return x if x.shape[1] == self.dim else x.permute(0, 3, 1, 2)
        if not hasattr(net, "num_prefix_tokens") or not hasattr(net, "patch_embed"):
            raise ValueError(f"ssl_zoo does not know the layout of {self.arguments['name']}'s features as a map")
        patches = x[:, net.num_prefix_tokens:]                   # [B, N, dim], without class and register tokens
        height = net.patch_embed.dynamic_feat_size(images.shape[-2:])[0]
        return patches.transpose(1, 2).unflatten(2, (height, -1))

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))             # pooled as the model does: a ViT by its class token


def timm_model(name: str, image_size: int | None, channels: int = 3) -> Any:
    """The timm model of this name without its classifier, for images of any size if the model can read them."""
    try:
        import timm
    except ImportError:
        raise ImportError(f"the encoder {name} comes from timm, which is not installed: "
                          "pip install ssl_zoo[timm]") from None
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "those of timm.list_models()"
        raise ValueError(f"timm has no model named {name}; it has {close}")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    options |= {} if channels == 3 else {"in_chans": channels}
    try:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:                                            # most models have no such option
        pass
    try:
        return timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f"timm's {name} does not take {' and '.join(options)} ({error}): images of any size need no "
                         "image_size, and channels other than 3 another model") from error


def named(name: str) -> Callable[..., Encoder] | None:
    """A constructor of the model of this name, torchvision's or else timm's; None if neither has such a model.

    Call it with `weights`, the path of a file, or None.

    A name that starts with timm/ is always timm's.
    """
    depths: dict[str, Literal[18, 34, 50, 101, 152]] = {
        "resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}
    if name in depths:
        return partial(ResNet, depths[name])           # the same net, with feature maps
    if name in torchvision.models.list_models(torchvision.models):
        return partial(Torchvision, name)
    name = name.removeprefix("timm/")
    return partial(Timm, name) if find_spec("timm") and import_module("timm").is_model(name) else None
