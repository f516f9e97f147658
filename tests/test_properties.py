"""Any rows, of any dtype and layout: a pure function gives finite numbers, or one sentence of its own.

Shapes of 0, 1, 2 and 7 rows and columns, values from 1e-30 to 1e15, equal and empty rows, half precision and float64,
transposed, strided and expanded tensors.
"""

import math
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import ssl_zoo
from ssl_zoo import losses, metrics, multi_view, sketching
from ssl_zoo.assignment import sinkhorn
from ssl_zoo.evaluation import classifiers, episodes, health, knn, lowshot, nearest, retrieval
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.grid import linear_grid
from ssl_zoo.evaluation.linear import train_head
from ssl_zoo.memory import Queue, SampleTable
from ssl_zoo.mixing import hardest_keys
from ssl_zoo.views import crops

HOME = str(Path(ssl_zoo.__file__).parent)
SIZES = st.sampled_from([0, 1, 2, 7])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
EXTREMES = {torch.float16: (1e-7, 6e4), torch.bfloat16: (1e-30, 1e15), torch.float32: (1e-30, 1e15),
            torch.float64: (1e-30, 1e15)}


@st.composite
def rows(draw, *shape, dtype=None):
    """A tensor of this shape: of noise, of one value, of equal rows, tiny, huge, or both; in any layout."""
    dtype = dtype or draw(DTYPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2 ** 16)))
    x = torch.randn(*shape, generator=generator)
    tiny, huge = EXTREMES[dtype]
    kind = draw(st.sampled_from(["noise", "zeros", "ones", "equal rows", "tiny", "huge", "both", "a row of zeros"]))
    if kind in ("zeros", "ones"):
        x = torch.full_like(x, float(kind == "ones"))
    elif kind == "equal rows":
        x = x[..., :1, :].expand(x.shape) if x.ndim > 1 and x.shape[-2] else x
    elif kind in ("tiny", "huge"):
        x = x.clamp(-1, 1) * (tiny if kind == "tiny" else huge)
    elif kind == "both":
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.5, x.clamp(-1, 1) * tiny, x.clamp(-1, 1) * huge)
    elif kind == "a row of zeros" and len(x):
        x = torch.cat([torch.zeros_like(x[:1]), x[1:]])
    return laid_out(x.to(dtype), draw(st.sampled_from(["plain", "transposed", "strided", "expanded", "offset"])))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, elsewhere in memory."""
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded" and len(x):
        return x if not torch.equal(x, x[:1].expand(x.shape)) else x[:1].expand(x.shape)
    return torch.cat([x.new_zeros(1, *x.shape[1:]), x])[1:] if layout == "offset" else x


def judged(function: Callable[[], object]) -> str | None:
    """What is wrong with what the function does, if anything is."""
    try:
        result = function()
    except ValueError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        sentence = frame.filename.startswith(HOME) and "\n" not in str(error) and len(str(error)) > 20
        return None if sentence else f"{Path(frame.filename).name}:{frame.lineno}: {error!r}"
    return None if finite(result) else f"not finite: {result}"


def finite(result: object) -> bool:
    if isinstance(result, Tensor):
        return not result.is_floating_point() or bool(result.isfinite().all())
    if isinstance(result, float):
        return math.isfinite(result)
    if isinstance(result, dict):
        return finite(list(result.values()))
    return all(map(finite, result)) if isinstance(result, (tuple, list)) else True


def with_gradient(loss: Callable[..., object], *inputs: Tensor) -> list[object]:
    """The loss, and its gradients; those of float16 are left out, for 1 / |row| of a row near 0 is above 65,504."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    result = loss(*inputs)
    made = [x for x in (result if isinstance(result, tuple) else (result,))
            if isinstance(x, Tensor) and x.requires_grad]
    if made:
        torch.stack([x.sum() for x in made]).sum().backward()
    return [result, *(x.grad for x in inputs if x.grad is not None and x.dtype != torch.float16)]


# Each draws its inputs, and gives the function without arguments

def pair_loss(loss, *choices):
    """Of two views [N, D], and of one of the choices where there are any."""
    def case(draw):
        count, width, dtype = draw(SIZES), draw(SIZES), draw(DTYPES)
        views = draw(rows(count, width, dtype=dtype)), draw(rows(count, width, dtype=dtype))
        chosen = [draw(st.sampled_from(choice)) for choice in choices]
        return partial(with_gradient, lambda a, b: loss(a, b, *chosen), *views)
    return case


def queue_loss(draw):
    count, width, dtype = draw(SIZES), draw(SIZES), draw(DTYPES)
    query, key = draw(rows(count, width, dtype=dtype)), draw(rows(count, width, dtype=dtype))
    queue = losses.unit(torch.randn(draw(st.sampled_from([1, 2, 7])), width))
    kind, temperature = draw(st.sampled_from(KINDS)), draw(st.sampled_from(TEMPERATURES))

    def loss(query, key):
        positive, negative = losses.queue_similarities(query, key, queue.to(losses.unit(query).dtype))
        return losses.contrast(positive, negative, temperature, kind)
    return partial(with_gradient, loss, query, key)


def views_loss(loss, *choices):
    """Of any number of views [V, N, D]."""
    def case(draw):
        z = draw(rows(draw(SIZES), draw(SIZES), draw(SIZES)))
        return partial(with_gradient, lambda z: loss(z, *(draw(st.sampled_from(choice)) for choice in choices)), z)
    return case


def sliced(loss):
    def case(draw):
        z = draw(rows(draw(SIZES), draw(SIZES), draw(SIZES)))
        directions = torch.randn(z.shape[-1], 4, generator=torch.Generator().manual_seed(0))
        return partial(with_gradient, lambda z: loss(z, F.normalize(directions, dim=0)), z)
    return case


def measure(function):
    """Of features [N, D]."""
    return lambda draw: partial(function, draw(rows(draw(SIZES), draw(SIZES))))


def metric(kind):
    def case(draw):
        x = draw(rows(draw(SIZES), draw(SIZES)))
        return lambda: kind()(x)
    return case


def protocol(function, parts=2):
    """Of training and test features, some of whose labels are not known."""
    def case(draw):
        width, dtype = draw(SIZES), draw(st.sampled_from([torch.float16, torch.float32]))
        return partial(function, *(part(draw, width, dtype) for _ in range(parts)))
    return case


def part(draw, width, dtype):
    count = draw(SIZES)
    labels = draw(st.lists(st.integers(-1, 2), min_size=count, max_size=count))
    return Features(draw(rows(count, width, dtype=dtype)), torch.tensor(labels, dtype=torch.long), torch.arange(count))


def codes(draw):
    scores = draw(rows(draw(SIZES), draw(SIZES))).clamp(-1, 1)
    return partial(sinkhorn, scores, draw(st.sampled_from([0.01, 0.05, 1.0])), draw(st.integers(0, 4)))


def neighbours(function):
    """Of queries among other rows, as many as asked for."""
    def case(draw):
        width, dtype = draw(SIZES), draw(DTYPES)
        queries, bank = draw(rows(draw(SIZES), width, dtype=dtype)), draw(rows(draw(SIZES), width, dtype=dtype))
        return partial(function, queries, bank, draw(SIZES))
    return case


def queued(draw):
    size, width = draw(SIZES), draw(SIZES)
    batches = [draw(rows(draw(SIZES), width)) for _ in range(3)]

    def fill():
        queue = Queue(size, width)
        for keys in batches:
            queue.enqueue(keys, torch.arange(len(keys)))
        return queue.keys, queue.snapshot(), queue.share()
    return fill


def written(draw):
    size, index = draw(SIZES), torch.tensor(draw(st.lists(st.integers(0, 8), max_size=7)), dtype=torch.long)
    values = draw(rows(len(index)))

    def fill():
        table = SampleTable(size, u=0.0)
        table.write(index, u=values)
        return table.read("u", index)
    return fill


def cut(draw):
    batch, height, width = draw(SIZES), draw(SIZES), draw(SIZES)
    images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
    boxes = torch.tensor([0.0, 0, height, width, 0, 1]).expand(2, batch, 6)
    return partial(crops.crop_and_resize, images, boxes, draw(SIZES), draw(st.sampled_from(["bilinear", "bicubic"])))


def overlapping(draw):
    count = draw(SIZES)
    corners = [draw(rows(count, 4, dtype=torch.float32)).abs().clamp(0, 1) for _ in range(2)]
    return partial(crops.overlap, *(torch.cat([x[:, :2], x[:, :2] + x[:, 2:] + 0.01], 1) for x in corners))


def contrasted(a, b, temperature, kind):
    if len(a) == 1 and kind != "info_nce":
        return a.new_zeros(1)                                 # documented: -inf for a row without any negative
    return losses.contrast(*losses.batch_similarities(a, b), temperature, kind)


def moving(a, b, temperature):
    return losses.global_contrast(a, b, torch.zeros(len(a)), torch.full((len(a),), temperature), 0.9)


TEMPERATURES, KINDS = (0.01, 0.07, 1.0), ("info_nce", "decoupled", "weighted_decoupled")
CASES = {
    "nt_xent": pair_loss(losses.nt_xent, TEMPERATURES),
    "contrast of a batch": pair_loss(contrasted, TEMPERATURES, KINDS),
    "contrast of a queue": queue_loss,
    "contrast of keys": pair_loss(lambda a, b, t: losses.contrast(*losses.cross_similarities(a, b), t), TEMPERATURES),
    "global_contrast": pair_loss(moving, (0.02, 0.07, 1.0)),
    "negative_cosine": pair_loss(losses.negative_cosine),
    "cross_correlation": pair_loss(losses.cross_correlation),
    "mean_similarities": pair_loss(losses.mean_similarities),
    **{loss.__name__: views_loss(loss, TEMPERATURES) for loss in (
        multi_view.mv_info_nce, multi_view.mv_dhel, multi_view.poly_view, multi_view.pairwise, multi_view.average)},
    "epps_pulley": sliced(sketching.epps_pulley),
    "sliced_wasserstein": sliced(sketching.sliced_wasserstein),
    "sinkhorn": codes,
    "hardest_keys": neighbours(hardest_keys),
    "nearest": neighbours(nearest.nearest),
    "feature_std": measure(health.feature_std),
    "rankme": measure(health.rankme),
    "uniformity": measure(health.uniformity),
    "alignment": pair_loss(health.alignment),
    "similarities": pair_loss(lambda a, b: health.similarities(a, b).positives),
    "tolerance": protocol(lambda part: health.tolerance(part.x, part.labels).joint, parts=1),
    **{kind.__name__: metric(kind) for kind in (metrics.RankMe, metrics.FeatureStd, metrics.Uniformity)},
    "knn": protocol(knn.knn),
    "retrieval": protocol(retrieval.retrieval),
    "lowshot": protocol(lowshot.lowshot),
    "fewshot": protocol(episodes.fewshot, parts=1),
    "linear_grid": protocol(linear_grid),
    "linear_cached": protocol(lambda train, test: train_head(train, 3, epochs=1)(test.x)),
    **{fit.__name__: protocol(partial(classifiers.judge, "x", fit)) for fit in (
        classifiers.logistic, classifiers.naive_bayes, classifiers.nearest_class_mean)},
    "Queue": queued,
    "SampleTable": written,
    "crop_and_resize": cut,
    "overlap": overlapping,
}
NAN_FOR_ONE_IMAGE = ("feature_std", "uniformity", "FeatureStd", "Uniformity")      # documented


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")       # of no column at all
@pytest.mark.parametrize("name", CASES)
def test_any_rows_give_finite_numbers_or_one_sentence(name):
    @settings(max_examples=120, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_some(data):
        function = CASES[name](data.draw)
        if name in NAN_FOR_ONE_IMAGE and len(inputs(function)[0]) == 1:
            return
        wrong = judged(function)
        assert wrong is None, f"{wrong}; {[(list(x.shape), x.dtype) for x in inputs(function)]}"

    try_some()


def inputs(function):
    """The tensors that a case has drawn."""
    values = function.args if isinstance(function, partial) else [c.cell_contents for c in function.__closure__]
    return [x for x in values if isinstance(x, Tensor)]
