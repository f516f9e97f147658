"""Products read in blocks against the whole matrix: values, gradients, two processes, and the memory they take."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo import blocks
from ssl_zoo.adaptive import PairTemperature, adaptive_batch
from ssl_zoo.blocks import Products, by_rows
from ssl_zoo.distributed import Key
from ssl_zoo.losses import (
    batch_products,
    batch_similarities,
    contrast,
    global_contrast,
    nt_xent,
    queue_similarities,
    unit,
)
from ssl_zoo.methods.pixcontrast import pixel_contrast
from ssl_zoo.mixing import draw_mixture, hard_similarities, hardest_keys
from ssl_zoo.multi_view import mv_dhel, mv_info_nce, poly_view, repulsion

KINDS = ["info_nce", "decoupled", "weighted_decoupled"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of five rows of a matrix with 14 columns, the last one of four."""
    monkeypatch.setitem(blocks.BLOCK, "cpu", 5 * 14 + 3)
    monkeypatch.setattr(blocks, "PLAIN", 0)


def losses_and_gradients(z1, z2, **options):
    z1, z2 = (z.clone().requires_grad_() for z in (z1, z2))
    terms = contrast(*batch_similarities(z1, z2), reduction="none", **options)
    (terms * normal(len(terms), seed=3).to(terms)).sum().backward()     # another weight for each row
    return terms, z1.grad, z2.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_in_blocks_losses_and_gradients_are_those_of_the_matrix(monkeypatch, kind, temperature, dtype, atol):
    z1, z2 = normal(2, 7, 5).to(dtype)
    whole = losses_and_gradients(z1, z2, temperature=temperature, kind=kind)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 5 * 14 + 3)
    monkeypatch.setattr(blocks, "PLAIN", 0)
    for one, other in zip(losses_and_gradients(z1, z2, temperature=temperature, kind=kind), whole, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=atol / temperature)


def test_keys_that_are_not_the_rows_have_their_gradient(small_blocks):
    rows, keys = normal(9, 4).requires_grad_(), normal(14, 4, seed=1).requires_grad_()
    products = Products(rows, keys, torch.arange(9)[:, None])
    weight = normal(9, seed=2)
    found = torch.autograd.grad((products.log_sums(0.3) * weight).sum(), (rows, keys))
    expected = torch.autograd.grad(((products.matrix() / 0.3).logsumexp(1) * weight).sum(), (rows, keys))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_has_no_rival_in_blocks_either(small_blocks, kind):
    z1, z2 = normal(2, 1, 3).requires_grad_()
    loss = contrast(*batch_similarities(z1, z2), 0.5, kind)
    slope, = torch.autograd.grad(loss, z1) if kind == "info_nce" else (torch.zeros(3),)
    assert loss.item() == (pytest.approx(0, abs=1e-12) if kind == "info_nce" else -math.inf)
    assert not slope.any()


def test_a_collapsed_encoder_has_the_log_of_its_choices_in_blocks(small_blocks):
    assert nt_xent(torch.ones(7, 3).double(), torch.ones(7, 3).double(), 0.1).item() == pytest.approx(math.log(13))


def test_a_function_by_rows_is_that_of_the_whole(small_blocks):
    rows, keys, column = normal(9, 4).requires_grad_(), normal(14, 4, seed=1).requires_grad_(), normal(9, seed=2)
    one = Products(rows, keys, torch.zeros(9, 0, dtype=torch.long))
    other = one._replace(rows=rows.tanh(), keys=keys.sigmoid())

    def function(first, second, weight):
        assert len(first) in (5, 4)
        return (first.square() * second).sum(1) * weight

    found = by_rows(function, (one, other), (column,))
    assert torch.allclose(found, (one.matrix().square() * other.matrix()).sum(1) * column, rtol=0, atol=1e-12)
    expected = torch.autograd.grad(((one.matrix().square() * other.matrix()).sum(1) * column).sum(), (rows, keys),
                                   retain_graph=True)
    for slope, right in zip(torch.autograd.grad(found.sum(), (rows, keys)), expected, strict=True):
        assert torch.allclose(slope, right, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor of floats that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize(("images", "largest"), [(256, 512 * 512), (2048, blocks.BLOCK["cpu"])])
def test_no_tensor_is_larger_than_a_block(images, largest):
    z1, z2 = normal(2, images, 4).float().requires_grad_()
    with Largest() as seen:
        nt_xent(z1, z2, 0.1).backward()
    assert seen.elements == largest


def sogclr(z1, z2):
    z1, z2 = (z.clone().requires_grad_() for z in (z1, z2))
    old = torch.linspace(0, 2, len(z1)).to(z1)                     # the first image has no average yet
    loss, averages, uneven = global_contrast(z1, z2, old, torch.linspace(0.2, 0.7, len(z1)).to(z1), 0.7)
    loss.backward()
    return loss.detach(), averages, uneven, z1.grad, z2.grad


def test_sogclrs_step_in_blocks_is_that_of_the_matrix(monkeypatch):
    z1, z2 = normal(2, 7, 5)
    whole = sogclr(z1, z2)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 5 * 14 + 3)
    monkeypatch.setattr(blocks, "PLAIN", 0)
    for one, other in zip(sogclr(z1, z2), whole, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_sogclrs_step_makes_no_tensor_larger_than_a_block():
    with Largest() as seen:
        sogclr(*normal(2, 1024, 4).float())
    assert seen.elements == blocks.BLOCK["cpu"]


def pixels(z, temperature):
    """PixContrast of as many images as there are views, with maps of 2 x 4 cells."""
    x, target = (view.mT.unflatten(2, (2, 4)) for view in (z, z.flip(0).tanh()))
    return pixel_contrast(x, target, torch.ones(8, 8).tril().bool().expand(len(z), 8, 8), temperature)


OF_VIEWS = {"MV-InfoNCE": mv_info_nce, "MV-InfoNCE, paper": lambda z, t: mv_info_nce(z, t, False), "MV-DHEL": mv_dhel,
            "poly-view": poly_view, "CACR": lambda z, t: repulsion(z, 1 / t), "PixContrast": pixels}


def with_slope(loss, z, temperature):
    z = z.clone().requires_grad_()
    value = loss(z, temperature)
    return value.detach(), *torch.autograd.grad(value, z)


@pytest.mark.parametrize("name", OF_VIEWS)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_losses_of_many_views_are_those_of_the_matrix_in_blocks(monkeypatch, name, temperature, dtype, tolerance):
    z = normal(3, 8, 5).to(dtype)
    whole = with_slope(OF_VIEWS[name], z, temperature)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 5 * 24 + 3)
    monkeypatch.setattr(blocks, "PLAIN", 0)
    with Largest() as seen:
        found = with_slope(OF_VIEWS[name], z, temperature)
    assert seen.elements <= 5 * 24 + 3
    for one, other in zip(found, whole, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance / temperature)


@pytest.mark.parametrize("name", ["MV-InfoNCE, paper", "PixContrast"])
def test_in_blocks_losses_of_many_views_compile_to_one_graph(small_blocks, name):
    z = normal(2, 8, 5)
    compiled = torch.compile(OF_VIEWS[name], backend="aot_eager", fullgraph=True)
    for one, other in zip(with_slope(compiled, z, 0.3), with_slope(OF_VIEWS[name], z, 0.3), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def amcl(z1, z2, form="bounded", weight=1e-2, weights=None):
    """AMCL's terms of two views, weighted, and the gradients of the views and of the network's first layer."""
    torch.manual_seed(0)
    network = PairTemperature(5, 8, floor=1e-3).to(z1)
    z1, z2 = (z.clone().requires_grad_() for z in (z1, z2))
    u1, u2 = unit(z1), unit(z2)
    products = *batch_similarities(u1, u2), *batch_products(network(u1), network(u2))
    terms = adaptive_batch(*products, network, weight, form)
    (terms * (normal(len(terms), seed=3) if weights is None else weights).to(terms)).sum().backward()
    return terms.detach(), z1.grad, z2.grad, network.network[0].weight.grad


@pytest.mark.parametrize("form", ["bounded", "paper"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_amcl_in_blocks_is_that_of_the_matrix(monkeypatch, form, dtype, tolerance):
    z1, z2 = normal(2, 7, 5).to(dtype)
    whole = amcl(z1, z2, form)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 5 * 14 + 3)
    monkeypatch.setattr(blocks, "PLAIN", 0)
    with Largest() as seen:
        found = amcl(z1, z2, form)
    assert seen.elements <= 5 * 14 + 3
    for one, other in zip(found, whole, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def test_amcl_of_a_single_image_has_no_rival_in_blocks_either(small_blocks):
    terms, *slopes = amcl(*normal(2, 1, 5), weight=0.0)
    assert terms.tolist() == [0, 0]
    assert not any(slope.any() for slope in slopes)


def test_amcl_in_blocks_compiles_to_one_graph(small_blocks):
    network, z1, z2 = PairTemperature(5, 8).double(), *normal(2, 7, 5).requires_grad_()

    def loss(z1, z2):
        products = *batch_similarities(z1, z2), *batch_products(network(z1), network(z2))
        return adaptive_batch(*products, network, 1e-2).mean()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,), (found,) = (torch.autograd.grad(function(z1, z2), [z1]) for function in (loss, compiled))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_two_processes_have_the_losses_of_many_views_in_blocks(two_processes):
    parts = two_processes(halves_of_views)
    for place, loss in enumerate([*OF_VIEWS.values()][:5]):        # PixContrast compares nothing between images
        value, slope = with_slope(loss, normal(3, 8, 5), 0.2)
        assert torch.allclose(torch.stack([part[place][0] for part in parts]).mean(), value, rtol=0, atol=1e-12)
        assert torch.allclose(torch.cat([part[place][1] for part in parts], 1) / 2, slope, rtol=0, atol=1e-12)
    terms, *slopes, of_network = amcl(*normal(2, 8, 5))
    found = [part[-1] for part in parts]
    assert torch.allclose(torch.stack([one[0] for one in found]), terms.view(2, 2, 4).transpose(0, 1).flatten(1))
    for place, slope in enumerate(slopes, start=1):
        assert torch.allclose(torch.cat([one[place] for one in found]), slope, rtol=0, atol=1e-11)
    assert torch.allclose(found[0][3] + found[1][3], of_network, rtol=0, atol=1e-11)


def halves_of_views(rank):
    before = blocks.BLOCK["cpu"], blocks.PLAIN
    blocks.BLOCK["cpu"], blocks.PLAIN = 3 * 24, 0
    found = [with_slope(loss, normal(3, 8, 5).chunk(2, 1)[rank], 0.2) for loss in [*OF_VIEWS.values()][:5]]
    weights = normal(16, seed=3).view(2, 2, 4)[:, rank].flatten()
    found.append(amcl(*(z.chunk(2)[rank] for z in normal(2, 8, 5)), weights=weights))
    blocks.BLOCK["cpu"], blocks.PLAIN = before
    return found


def test_two_processes_in_blocks_have_the_loss_and_gradients_of_one(two_processes):
    z1, z2 = normal(2, 8, 5)
    whole = losses_and_gradients(z1, z2, temperature=0.2, kind="info_nce")
    parts = two_processes(half_in_blocks)
    for place, (expected, found) in enumerate(zip(whole, zip(*parts, strict=True), strict=True)):
        halves = expected.view(2, 2, 4).transpose(0, 1) if not place else expected.chunk(2)
        for one, other in zip(found, halves, strict=True):
            assert torch.allclose(one.view_as(other), other, rtol=0, atol=1e-12)


def half_in_blocks(rank):
    before = blocks.BLOCK["cpu"], blocks.PLAIN
    blocks.BLOCK["cpu"], blocks.PLAIN = 3 * 16, 0
    z1, z2 = (z.chunk(2)[rank].clone().requires_grad_() for z in normal(2, 8, 5))
    terms = contrast(*batch_similarities(z1, z2), 0.2, reduction="none")
    (terms * normal(16, seed=3).view(2, 2, 4)[:, rank].flatten()).sum().backward()
    blocks.BLOCK["cpu"], blocks.PLAIN = before
    return terms.detach(), z1.grad, z2.grad


def test_in_blocks_the_loss_compiles_to_one_graph(small_blocks):
    z1, z2 = normal(2, 7, 5).requires_grad_()
    compiled = torch.compile(lambda a, b: nt_xent(a, b, 0.1), backend="aot_eager", fullgraph=True)
    (expected,), (found,) = (torch.autograd.grad(loss(z1, z2), [z1]) for loss in (
        lambda a, b: nt_xent(a, b, 0.1), compiled))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_normal_rows_meet_all_but_what_is_left_out():
    rows = normalize(normal(3, 2), dim=1)
    matrix = Products(rows, rows, torch.tensor([[0, 1], [1, 2], [2, 0]])).matrix()
    assert matrix.isneginf().nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2]]
    assert matrix[0, 2].item() == pytest.approx((rows[0] @ rows[2]).item())


def of_queue(query, keys, temperature, kind="info_nce", besides=None):
    """The terms of queries against a queue, weighted, with the gradients of the queries and of what is beside it."""
    query, key = query.clone().requires_grad_(), normal(*query.shape, seed=8).to(query)
    positive, negative = queue_similarities(query, key, keys)
    own = None if besides is None else besides.clone().requires_grad_()
    terms = contrast(positive, negative._replace(besides=own), temperature, kind, reduction="none")
    leaves = [leaf for leaf in (query, own) if leaf is not None]
    return terms.detach(), *torch.autograd.grad((terms * normal(len(terms), seed=3).to(terms)).sum(), leaves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_against_a_queue_losses_and_gradients_in_blocks_are_those_of_the_matrix(monkeypatch, kind, temperature, beside,
                                                                                dtype, tolerance):
    query, keys = normal(9, 4).to(dtype), normalize(normal(31, 4, seed=1), dim=1).to(dtype)
    besides = normal(9, 3, seed=5).tanh().to(dtype) if beside else None
    whole = of_queue(query, keys, temperature, kind, besides)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 19)                    # of four rows and four columns
    monkeypatch.setattr(blocks, "PLAIN", 0)
    for one, other in zip(of_queue(query, keys, temperature, kind, besides), whole, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance / temperature)


def test_the_loss_against_a_queue_makes_no_tensor_larger_than_a_block_nor_any_product_again():
    with Largest() as seen, FlopCounterMode(display=False) as counted:
        of_queue(normal(64, 4).float(), normalize(normal(70_000, 4, seed=1), dim=1).float(), 0.1)
    assert seen.elements <= blocks.BLOCK["cpu"]
    assert counted.get_total_flops() == 2 * (2 * 64 * 70_000 * 4)              # forward, and of the gradient


def test_a_queue_with_a_gradient_of_its_own_has_it(small_blocks):
    query, keys = normal(9, 4).requires_grad_(), normal(14, 4, seed=1).requires_grad_()
    slopes = [torch.autograd.grad(sums.square().sum(), (query, keys)) for sums in
              (Products(query, keys).log_sums(0.3), (query @ keys.T / 0.3).logsumexp(1))]
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_the_loss_against_a_queue_compiles_to_one_graph(small_blocks):
    query, keys = normal(9, 4), normalize(normal(31, 4, seed=1), dim=1)

    def loss(z, temperature):
        return contrast(*queue_similarities(z, z.detach().tanh(), keys), temperature)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for one, other in zip(with_slope(compiled, query, 0.3), with_slope(loss, query, 0.3), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_second_derivative_of_the_loss_against_a_queue_is_refused(small_blocks):
    query = normal(9, 4).requires_grad_()
    sums = Products(query, normal(14, 4, seed=1)).log_sums(0.3)
    slope, = torch.autograd.grad(sums.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_mean_of_products_needs_no_matrix():
    rows, keys = normal(9, 4), normal(14, 4, seed=1)
    assert Products(rows, keys).mean().item() == pytest.approx((rows @ keys.T).mean().item(), abs=1e-15)


def mochi(query, queue, temperature):
    """MoCHi's loss of queries whose keys are their own, mixed from the 8 hardest of the queue."""
    hardest = hardest_keys(query, queue, 8)
    drawn = draw_mixture(Key(0, 0, 0, 0), len(query), 8, 8, 5, query.device)
    positive, negative = queue_similarities(query, query.detach().tanh(), queue)
    return contrast(positive, negative._replace(besides=hard_similarities(query, queue, hardest, drawn)), temperature)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_mochi_in_blocks_is_that_of_the_whole(monkeypatch, dtype, tolerance):
    query, queue = normal(9, 4).to(dtype), normalize(normal(31, 4, seed=1), dim=1).to(dtype)
    whole = with_slope(lambda z, t: mochi(z, queue, t), query, 0.2)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 450)                              # of two queries' pairs, 2 x 6 x 8 x 4
    monkeypatch.setattr(blocks, "PLAIN", 0)
    with Largest() as seen:
        found = with_slope(lambda z, t: mochi(z, queue, t), query, 0.2)
    assert seen.elements == 9 * 31                                             # the hardest of nine queries
    for one, other in zip(found, whole, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerance)
