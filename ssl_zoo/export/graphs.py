"""The whole encoder as a graph, its normalisation included: torch.export's .pt2, and ONNX made of it."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_zoo.encoders import Encoder, check_size
from ssl_zoo.export.usage import TORCH, Different, Usage, noise, plain

if TYPE_CHECKING:   # torch.export takes a second to import, which whoever only wants a fingerprint should not wait for
    from torch.export import ExportedProgram

AXES = {0: "batch", 2: "height", 3: "width"}
LARGEST = 2 ** 31 - 2 ** 20   # bytes of weights in one ONNX file, whose format counts in 31 bits
# timm's padding as TensorFlow's, and shifted windows: arithmetic on the size, on which the tracer spends minutes
SLOW = "Same$|Swin|ShiftedWindow"
PT2 = Usage("import torch", "encoder = torch.export.load(FILE).module()", TORCH)
ONNX = Usage("import onnxruntime", "session = onnxruntime.InferenceSession(FILE)",
             'features, = session.run(None, {"images": images})', numpy=True)


class OfBytes(nn.Module):
    """An encoder whose graph fails where it is given floats, of which torch.export's would take 0 to 1 for 0 to 255."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images & 255)                    # bits, which floats do not have


def write_pt2(encoder: Encoder, path: Path, said: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    def save(program: "ExportedProgram", said: dict[str, Any]) -> None:
        buffer = io.BytesIO()                                # the path would have to end in .pt2
        torch.export.save(program, buffer, extra_files={"ssl_zoo.json": json.dumps(said, default=str)})
        path.write_bytes(buffer.getvalue())
    return write(encoder, path, said, save, PT2)


def write_onnx(encoder: Encoder, path: Path, said: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    held = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    if held > LARGEST:
        raise ValueError(f"the encoder's weights have {held / 1e9:.1f} GB, and an ONNX file holds 2: export it as .pt2")

    def save(program: "ExportedProgram", said: dict[str, Any]) -> None:
        import onnx
        exported = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["features"],
                                     verbose=False)
        assert exported is not None
        model = named_axes(exported.model_proto)
        onnx.helper.set_model_props(model, {"ssl_zoo": json.dumps(said, default=str),
                                            "license": said["license"] or "unknown"})
        path.write_bytes(model.SerializeToString())
    return write(encoder, path, said, save, ONNX)


def write(encoder: Encoder, path: Path, said: dict[str, Any], save: "Callable[[ExportedProgram, dict[str, Any]], None]",
          usage: Usage) -> tuple[dict[str, Any], Usage]:
    """Write the graph for images of any size, or else for those of the encoder's size, whichever gives its features."""
    size = said["preprocessing"]["size"]
    encoder = plain(encoder, size)
    batches = [(1, size, size), (3, size, size)]
    for free in (True, False) if takes(encoder, 2 * size) else (False,):
        sizes = "any that the encoder takes" if free else f"{size} x {size} alone"
        with_input = said | {"preprocessing": said["preprocessing"] | {"input": "uint8", "sizes": sizes}}
        try:
            with quiet():
                program = traced(OfBytes(encoder) if usage is PT2 else encoder, noise(2, encoder.channels, size, size),
                                 free)                       # torch.export takes a batch of 1 for a constant
                save(program, with_input)
                usage.require_equal(encoder, path, [*batches, (2, 2 * size, size)] if free else batches)
        except Exception as error:   # of torch's tracer, of onnxscript or of onnxruntime
            failed = error
        else:
            return with_input, usage
    if isinstance(failed, OSError | ImportError | Different):
        raise failed
    why = (str(failed) or type(failed).__name__).strip().splitlines()[0]
    raise ValueError(f"{type(encoder).__name__} cannot be written as a graph for batches of any size ({why}): let its "
                     "forward depend neither on values of the images (torch.where takes the place of if) nor on how "
                     "many there are, or export it as .safetensors") from failed


def traced(encoder: nn.Module, images: Tensor, free: bool) -> "ExportedProgram":
    """The encoder's graph for any batch, and for images of any height and width if `free`."""
    from torch.export import Dim
    shapes = dict.fromkeys(AXES if free else (0,), Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(encoder, (images,), dynamic_shapes=(shapes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)                   # paths of this machine
    return program


def takes(encoder: Encoder, size: int) -> bool:
    """Whether the encoder also reads images of this size, and can be traced for all; some have one size only."""
    if any(re.search(SLOW, type(module).__name__) for module in encoder.modules()):
        return False
    try:
        check_size(encoder, size)
    except ValueError:
        return False
    return True


def named_axes(model: Any) -> Any:
    """An ONNX model with batch, height and width for the tracer's names of the images' sides."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    names = {dims[axis].dim_param: name for axis, name in AXES.items() if dims[axis].dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the tracer logs and prints: the graph so far, hundreds of lines of it, where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()),
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
