"""Weights as others publish them: which tensors of a file are the backbone's, whatever stands before their names.

A file's names are compared with the backbone's own: the part before them may be anything, such as
state_dict.module.encoder_q, so that no list of programs is needed. Where several parts of a file fit, as a query and a
key encoder do, the words in WANTED and UNWANTED decide.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_zoo.weights import require_same_tensors

WANTED = {"teacher", "ema", "query", "q", "online"}          # as the papers measure: DINO its teacher, MoCo its query
UNWANTED = {"student", "momentum", "key", "k", "target"}
AROUND = ((r"_orig_mod\.", ""),                              # of torch.compile
          (r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1"),   # torchvision's files of before 2017
          (r"blocks\.\d+\.(?=\d+\.)", "blocks."))            # DINOv2 trains its blocks in chunks
HARMLESS = re.compile(r"mask_token|masked_embed|decoder_\w+|\w*queue\w*")   # what only pretraining uses

Layout = Sequence[tuple[str, str]]                           # from the backbone's names to the file's


def numbered(*places: int) -> Layout:
    """A ResNet as a Sequential of its layers, of which those without weights count too."""
    return [(rf"^{name}\.", f"{place}.")
            for name, place in zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), places, strict=True)]


def counted(*depths: int) -> Layout:
    """timm's EfficientNet as EfficientNet-PyTorch writes it: blocks counted through all stages, which have `depths`."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    first, later = r"^(blocks\.0\.\d\.)", r"^(blocks\.[1-9]\.\d\.)"   # the first stage's blocks expand nothing
    return [(r"^conv_stem\.", "_conv_stem."), (r"^conv_head\.", "_conv_head."), (r"^bn1\.", "_bn0."),
            (r"^bn2\.", "_bn1."),
            *((rf"(\.){ours}(?=\.)", rf"\1{theirs}") for ours, theirs in (
                ("conv_dw", "_depthwise_conv"), ("conv_pwl", "_project_conv"), (r"se\.conv_reduce", "_se_reduce"),
                (r"se\.conv_expand", "_se_expand"))),
            (rf"{first}conv_pw\.", r"\1_project_conv."), (rf"{later}conv_pw\.", r"\1_expand_conv."),
            *((rf"{first}bn{i}\.", rf"\1_bn{i}.") for i in (1, 2)),
            *((rf"{later}bn{i}\.", rf"\1_bn{i - 1}.") for i in (1, 2, 3)),
            *((rf"^blocks\.{stage}\.{block}\.", f"_blocks.{i}.") for i, (stage, block) in enumerate(places))]


SHORTCUT: Layout = [(r"\.downsample\.", ".shortcut.")]
LAYOUTS: tuple[Layout, ...] = (
    (), SHORTCUT,
    numbered(0, 1, 4, 5, 6, 7), numbered(0, 1, 3, 4, 5, 6),   # torchvision's layers, and without its max-pool
    [*numbered(0, 1, 2, 3, 4, 5), *SHORTCUT],                # lightly's ResNetGenerator
    [(r"^patch_embed\.proj\.", "patch_embed.projection."), (r"^norm\.", "ln1."),   # mmselfsup's transformers
     (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"), (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
     (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."), (r"^blocks\.", "layers.")],
    counted(1, 2, 2, 3, 3, 4, 1),                          # EfficientNet-B0 and -Lite0
)


class Location(NamedTuple):
    """Tensors of a file that a backbone may be loaded from."""

    prefix: str
    layout: Layout


def taken(net: nn.Module, state: Mapping[str, Tensor], source: str | Path,
          classifier: str | Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a file that are the backbone's, by its own names, and what stands before these in the file.

    Says in one line on standard error what was taken and what was left, unless that is all but a classifier.

    Args:
        net: the backbone; unchanged.
        state: the file's tensors, as `read_state` gives them.
        source: the file.
        classifier: the backbone's name for its classifier, or names, which are left.

    Raises:
        ValueError: no part of the file fits, or several do; the sentence says what the file looks like.
    """
    state = {renamed(name, AROUND): value for name, value in state.items()}
    own = net.state_dict()
    prefix, layout = part(own, state, source)
    names = {renamed(name, layout): name for name in own}
    given = {names.get(name, name): value for name, value in
             ((name.removeprefix(prefix), value) for name, value in state.items() if name.startswith(prefix))
             if not of(name, classifier)}
    modules = {name.partition(".")[0] for name in [*own, *names]} | {name for name, _ in net.named_children()}
    found = needed(given, own, modules)
    if differ(own, found):
        found = needed(converted(net, given), own, modules)
    about = f"{source}, its {prefix}*," if prefix else source
    require_same_tensors(net, found, about, f"it holds {looks_like(state)}")
    if broken := [name for name, value in found.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(f"{about} has values that are not finite in {len(broken)} tensors, such as {broken[0]}: take "
                         "a checkpoint of before its loss was lost")
    changed = [f"{name} {list(value.shape)} to {list(found[name].shape)}" for name, value in given.items()
               if name in found and found[name].shape != value.shape]
    mine, used = {prefix + name for name in names}, set(map(id, found.values()))   # timm renames some
    left = [name for name, value in state.items()
            if name not in mine and id(value) not in used and not of(name.removeprefix(prefix), classifier)]
    say(source, prefix, len(found), changed, left)
    return prefix, found


def part(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path) -> Location:
    """Where in the file the backbone is; the names decide, and among equals the words before them."""
    places: dict[str, list[str]] = {}                        # by the end of a name, what stands before it
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            places.setdefault(".".join(parts[i:]), []).append("".join(f"{word}." for word in parts[:i]))
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    best, fits = 0, []
    for layout in LAYOUTS:
        hits = Counter(prefix for name in wanted for prefix in places.get(renamed(name, layout), ()))
        most = max(hits.values(), default=0)
        if most > best:
            best, fits = most, [Location(prefix, layout) for prefix, count in hits.items() if count == most]
    if best < len(wanted) / 2:
        raise ValueError(f"{source} does not hold this encoder's weights, such as {wanted[0]}: it holds "
                         f"{looks_like(state)}")
    liked = max(liking(one.prefix) for one in fits)
    first, *others = [one for one in fits if liking(one.prefix) == liked]
    for other in others:
        if any(not torch.equal(state[first.prefix + end], state[other.prefix + end])
               for end in (renamed(name, first.layout) for name in wanted) if first.prefix + end in state):
            raise ValueError(f"{source} holds several encoders that fit, {first.prefix}* and {other.prefix}*: save the "
                             "one that you mean in a file of its own")
    return first


def liking(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix.lower()))
    return len(words & WANTED) - len(words & UNWANTED)


def renamed(name: str, layout: Layout | tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in layout:
        name = re.sub(pattern, replacement, name)
    return name


def of(name: str, modules: str | Sequence[str]) -> bool:
    """Whether a tensor is in one of these modules."""
    return any(name.startswith(f"{module}.") for module in ([modules] if isinstance(modules, str) else modules))


def needed(given: Mapping[str, Tensor], own: Mapping[str, Tensor], modules: set[str]) -> dict[str, Tensor]:
    """What is the backbone's: without other modules, such as heads, and without what only pretraining uses.

    A count that old batch norms lack is filled in, and a first convolution of one or three channels is made to read
    the backbone's.
    """
    kept = {name: value for name, value in given.items() if name.partition(".")[0] in modules
            or "." not in name and value.numel() > 1 and not HARMLESS.fullmatch(name)}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            kept.setdefault(name, value)
    first = next((name for name, value in own.items() if value.ndim == 4), None)
    if first in kept and kept[first].ndim == 4 and kept[first].shape[1] in (1, 3):
        kept[first] = widened(kept[first], own[first].shape[1])
    return kept


def widened(weight: Tensor, channels: int) -> Tensor:
    """A first convolution [D, C, h, w] for images of other channels, as timm's `adapt_input_conv` and others do.

    Its kernels are repeated over the channels and divided by how often, so that where all channels are the same image
    nothing changes; those for a single channel are summed.
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % given] / (channels / given)


def differ(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in found.items()}


def converted(net: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm converts the files of the model's authors: positions of another size, registers, other names."""
    home = type(net).__module__
    convert: Callable[..., Any] | None = getattr(import_module(home), "checkpoint_filter_fn", None)
    if not home.startswith("timm.") or convert is None:
        return found
    try:
        return dict(convert(dict(found), net))
    except Exception:   # of a file that it does not expect, whose tensors are then compared as they are
        return found


def say(source: str | Path, prefix: str, count: int, changed: Sequence[str], left: Sequence[str]) -> None:
    """One line, on the first process."""
    if os.environ.get("LOCAL_RANK", "0") != "0" or not (prefix or changed or left):
        return
    groups = list(dict.fromkeys(group(name, prefix) for name in left))
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    print(f"{source}: took {count} tensors{f', {prefix}*' if prefix else ''}"
          f"{'; reshaped ' + ', '.join(changed) if changed else ''}"
          f"{'; left ' + ', '.join(groups[:4]) + more if left else ''}", file=sys.stderr)


def group(name: str, prefix: str) -> str:
    """The part of a file that a tensor is in, as far as it tells it from the part that was taken."""
    parts, here = name.split("."), prefix.split(".")
    same = next((i for i, (one, other) in enumerate(zip(parts, here, strict=False)) if one != other), len(here) - 1)
    return name if len(parts) <= same + 1 else ".".join(parts[:same + 1]) + ".*"


DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}


def looks_like(state: Mapping[str, Tensor]) -> str:
    """What a file holds, in the words that name an encoder."""
    for describe in (resnet, transformer):
        if said := describe(state):
            return said
    if any("patch_embeddings.projection" in name for name in state):
        return "a vision transformer under the names of the library transformers: take timm's file, or the authors'"
    names = sorted(state)
    return f"{len(names)} tensors, such as {', '.join(names[:3])}"


def resnet(state: Mapping[str, Tensor]) -> str | None:
    blocks: dict[str, set[int]] = {}
    convolutions = [match for match in (re.search(r"((?:^|.*\.)layer)([1-4])\.(\d+)\.conv([1-3])\.weight$", name)
                                        for name in state) if match]
    for match in convolutions:
        if match[1] == convolutions[0][1]:
            blocks.setdefault(match[2], set()).add(int(match[3]))
    if not blocks:
        return None
    depth = DEPTHS.get(tuple(len(blocks[stage]) for stage in sorted(blocks)))   # type: ignore[arg-type]
    bottleneck = any(match[4] == "3" for match in convolutions)
    stem = state.get(convolutions[0][1].removesuffix("layer") + "conv1.weight")
    small = stem is not None and stem.ndim == 4 and stem.shape[-1] == 3
    name = {34: 50 if bottleneck else 34}.get(depth, depth) if depth else None
    return f"resnet{name}{' with small_images' if small else ''}" if name else "a ResNet of another depth"


def transformer(state: Mapping[str, Tensor]) -> str | None:
    patches = [(name, value) for name, value in state.items() if name.endswith("patch_embed.proj.weight")]
    if not patches or patches[0][1].ndim != 4:
        return None
    prefix = patches[0][0].removesuffix("patch_embed.proj.weight")
    blocks = {name.removeprefix(f"{prefix}blocks.").partition(".")[0] for name in state
              if name.startswith(f"{prefix}blocks.")}
    width, patch = patches[0][1].shape[0], patches[0][1].shape[-1]
    registers = state.get(f"{prefix}register_tokens", state.get(f"{prefix}reg_token"))
    said = (f"a vision transformer (width {width}, {len(blocks)} blocks, patches of {patch} pixels"
            f"{f', {registers.shape[1]} registers' if registers is not None else ''})")
    if (size := WIDTHS.get(width)) is None or f"{prefix}cls_token" not in state:
        return said
    kind = f"{'reg4_' if registers is not None else ''}dinov2" if patch == 14 else "224"
    return f"{said}, such as timm's vit_{size}_patch{patch}_{kind}"
