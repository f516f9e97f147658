"""AMCL's losses and temperatures: every pair of projections has a temperature of its own (arXiv:2310.05615)."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_zoo.blocks import Products, blocks, by_rows
from ssl_zoo.losses import Reduction, full_precision, off_diagonal, reduced


class PairTemperature(nn.Module):
    """A learned temperature for each pair: the more alike the network finds the two, the lower it is.

    AMCL, arXiv:2310.05615: floor + (ceiling - floor) / (1 + exp(r)), with r the scalar product of the two codes.

    Args:
        dim: width D of what is compared.
        hidden: width of the network's only hidden layer.
        floor: the lowest temperature; at least 0.02 keeps the paper's form of the loss finite.
        ceiling: the highest temperature.
    """

    def __init__(self, dim: int, hidden: int = 128, floor: float = 1e-5, ceiling: float = 2.0):
        super().__init__()
        if not 0 < floor < ceiling:
            raise ValueError(f"temperatures lie between a floor above 0 and a ceiling above it, not {floor}, {ceiling}")
        self.network = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.width, self.floor, self.ceiling = dim, floor, ceiling

    def forward(self, rows: Tensor) -> Tensor:
        """The codes [..., D] of rows [..., D]; hand the scalar products of two sides' codes to `of`."""
        with torch.autocast(rows.device.type, enabled=False):
            return self.network(rows.to(torch.promote_types(rows.dtype, torch.float32)))

    def of(self, products: Tensor) -> Tensor:
        """The temperatures of pairs whose codes have these scalar products, of the same shape."""
        return self.floor + (self.ceiling - self.floor) * torch.sigmoid(-products)


def omega(temperature: Tensor, width: int) -> Tensor:
    """width / 2 * log(temperature) + 1 / temperature, which keeps a learned temperature away from 0.

    AMCL, arXiv:2310.05615. It is least at 2 / width. With cosine / temperature added, it would be minus the log of a
    Gaussian's density.
    """
    return width / 2 * temperature.log() + 1 / temperature


AdaptiveForm = Literal["bounded", "paper"]
LOGGED = 16   # rows of negatives: enough to log their temperatures, without a copy of the whole matrix


@full_precision
def adaptive_contrast(positive: Tensor, negative: Tensor, positive_temperature: Tensor, negative_temperature: Tensor,
                      width: int, regularizer_weight: float, form: AdaptiveForm = "bounded", hardest: int = 1,
                      reduction: Reduction = "mean") -> Tensor:
    """Contrast with a temperature for each pair: AMCL, arXiv:2310.05615.

    "paper" is eq. (2.1): the positive against the hardest negative, each divided by its temperature. It has no lower
    bound: once a pair is solved, the loss falls with the temperatures until these reach their floor and stay there.

    "bounded" compares the positive with the log-sum-exp over itself and all negatives, and regularises by the mean
    over the negatives. With one constant temperature and no regulariser it is `contrast`. It stays above
    -regularizer_weight / floor, since for a negative whose cosine is below 0 only the regulariser asks for a low
    temperature.

    Args:
        positive, positive_temperature: [B].
        negative, negative_temperature: [B, K]; the cosine is -inf where there is no negative.
        width: width of the projections.
        regularizer_weight: weight of `omega`; the paper's beta.
        hardest: the number of negatives, by cosine, over which the paper's form takes means.
    """
    pull = positive / positive_temperature
    if form == "paper":
        chosen = negative.topk(hardest)
        temperature = negative_temperature.gather(1, chosen.indices)                     # [B, hardest]
        push = (chosen.values / temperature).mean(1)
        negative_omega = omega(temperature, width).mean(1)
    else:
        there = negative.isfinite()          # divided only there: the gradient of -inf / temperature is no number
        logits = (negative.masked_fill(~there, 0.0) / negative_temperature).masked_fill(~there, float("-inf"))
        push = torch.cat([pull[:, None], logits], 1).logsumexp(1)
        negative_omega = omega(negative_temperature, width).masked_fill(~there, 0.0).sum(1) / there.sum(1).clamp_min(1)
    regularizer = omega(positive_temperature, width) - negative_omega
    return reduced(push - pull + regularizer_weight * regularizer, reduction)


@full_precision
def adaptive_batch(positive: Tensor, negative: Products, positive_codes: Tensor, negative_codes: Products,
                   network: PairTemperature, regularizer_weight: float, form: AdaptiveForm = "bounded") -> Tensor:
    """The terms [2B] of `adaptive_contrast` over a batch, of whose large products only a block is in memory at a time.

    Args:
        positive, negative: of `batch_similarities`.
        positive_codes, negative_codes: of `batch_products` of the network's codes.
        network: makes temperatures of products of codes.
        regularizer_weight: weight of `omega`; the paper's beta.
    """
    def rows(negative: Tensor, negative_codes: Tensor, positive: Tensor, positive_codes: Tensor) -> Tensor:
        temperatures = network.of(positive_codes), network.of(negative_codes)
        return adaptive_contrast(positive, negative, *temperatures, network.width, regularizer_weight, form,
                                 reduction="none")

    if form == "paper" or negative.few:
        return by_rows(rows, (negative, negative_codes), (positive, positive_codes))
    assert negative.left_out is not None                                       # each row has itself and its positive
    symmetric = negative.keys is negative.rows                                 # torch.compile takes no tensor twice
    keys = (None, None) if symmetric else (negative.keys, negative_codes.keys)
    push, omegas = PairSums.apply(negative.rows, negative_codes.rows, *keys, negative.left_out,
                                  Range(network.floor, network.ceiling, network.width))
    temperature = network.of(positive_codes)
    pull = positive / temperature
    count = max(len(negative.keys) - negative.left_out.shape[1], 1)
    return (torch.logaddexp(pull, push) - pull
            + regularizer_weight * (omega(temperature, network.width) - omegas / count))


class Range(NamedTuple):
    """Of the temperatures, and the width that `omega` takes."""

    floor: float
    ceiling: float
    width: int


class PairSums(torch.autograd.Function):
    """For each row over all pairs: the log of the sum of exp(cosine / temperature), and the sum of `omega`; [R] each.

    In blocks, as `blocks.LogSumExp`. Where the rows are the keys, each pair serves both of its rows, so that a block
    begins at its own column: four matrix products in place of six, and half of all else.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, keys: Tensor | None, code_keys: Tensor | None,
                left_out: Tensor, of: Range) -> tuple[Tensor, Tensor]:
        """The keys are the rows where they are None."""
        sums, omegas = rows.new_full((len(rows),), float("-inf")), rows.new_zeros(len(rows))
        pairs = rows, codes, keys, code_keys, left_out, of
        for block, cosines, share, out in pair_blocks(*pairs):
            inverse = share.mul_(of.ceiling - of.floor).add_(of.floor).reciprocal()          # 1 / temperature, [r, K]
            weights = share.log_().mul_(of.width / 2).add_(inverse).scatter_(1, out, 0.0)
            logits = cosines.mul_(inverse).scatter_(1, out, float("-inf"))
            sums[block] = torch.logaddexp(sums[block], logits.logsumexp(1))
            omegas[block] += weights.sum(1)
            if keys is None and block.stop < len(rows):
                later = slice(block.stop, None)
                sums[later] = torch.logaddexp(sums[later], logits[:, len(logits):].logsumexp(0))
                omegas[later] += weights[:, len(logits):].sum(0)
        ctx.save_for_backward(rows, codes, keys, code_keys, left_out, sums)
        ctx.of = of
        return sums, omegas

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_omega: Tensor) -> tuple[Tensor | None, ...]:
        rows, codes, keys, code_keys, left_out, sums = ctx.saved_tensors
        sums = sums.masked_fill(sums.isneginf(), 0.0)                 # of a row without columns: its softmax is 0
        slopes = [torch.zeros_like(rows), torch.zeros_like(codes)]
        of_keys = slopes if keys is None else [torch.zeros_like(keys), torch.zeros_like(code_keys)]
        for block, cosines, share, out in pair_blocks(rows, codes, keys, code_keys, left_out, ctx.of):
            start = block.start if keys is None else 0
            inverse = (share * (ctx.of.ceiling - ctx.of.floor)).add_(ctx.of.floor).reciprocal_()
            logits = (cosines * inverse).scatter_(1, out, float("-inf"))
            pulls = (logits - sums[block, None]).exp_().mul_(grad[block, None])
            far = grad_omega[block, None]
            if keys is None:
                pulls += logits.sub_(sums[start:]).exp_().mul_(grad[start:])
                far = far + grad_omega[start:]
            pulls *= inverse                                                  # of the cosines, [r, K]
            bends = (ctx.of.width / 2 - inverse).mul_(far).addcmul_(pulls, cosines, value=-1).mul_(inverse)
            bends.mul_(share).mul_(share.sub_(1)).mul_(ctx.of.ceiling - ctx.of.floor).scatter_(1, out, 0.0)
            for slope, of_key, mine, others, pull in zip(
                    slopes, of_keys, (rows, codes), (keys, code_keys), (pulls, bends), strict=True):
                slope[block] += pull @ (mine[start:] if others is None else others)
                after = len(pull) if others is None else 0         # the block's own columns are done
                of_key[start + after:].addmm_(pull[:, after:].T, mine[block])
        return *slopes, *((None, None) if keys is None else of_keys), None, None


def pair_blocks(rows: Tensor, codes: Tensor, keys: Tensor | None, code_keys: Tensor | None, left_out: Tensor,
                of: Range) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For some rows at a time: which they are, the cosines [r, K] and the share of the range that is a temperature's
    [r, K], both of columns from the rows themselves on where the rows are the keys, and the columns to leave out."""
    for block in blocks(rows, rows if keys is None else keys):
        block = slice(block.start, min(block.stop, len(rows)))
        start = block.start if keys is None else 0
        out = left_out[block] - start
        if keys is None:                           # an earlier column was left out when it was a row: repeat another
            out = torch.where(out < 0, out.amax(1, keepdim=True), out)
        cosines = rows[block] @ (rows[start:] if keys is None else keys).T
        share = (-codes[block] @ (codes[start:] if code_keys is None else code_keys).T).sigmoid_()
        yield block, cosines, share, out


@full_precision
def adaptive_correlation(correlation: Tensor, temperatures: Tensor, redundancy_weight: float,
                         regularizer_weight: float, form: AdaptiveForm = "bounded") -> Tensor:
    """Barlow Twins' loss with a temperature for each element: eq. (2.3) of AMCL, arXiv:2310.05615.

    On the diagonal a temperature is the correlation to reach, since the loss brings the quotient of the two to 1; off
    the diagonal it divides the square. With all temperatures at 1 and no regulariser this is Barlow Twins' own loss.
    "paper" subtracts the regulariser of the elements off the diagonal, which leaves no lower bound; "bounded" does not.

    Args:
        correlation, temperatures: [D, D].
    """
    width = len(correlation)
    diagonal = (1 - correlation.diagonal() / temperatures.diagonal()).square().sum()
    rest = (off_diagonal(correlation).square() / off_diagonal(temperatures)).sum()
    regularizer = omega(temperatures.diagonal(), width).sum()
    if form == "paper":
        regularizer = regularizer - omega(off_diagonal(temperatures), width).sum()
    return diagonal + redundancy_weight * rest + regularizer_weight * regularizer


@torch.no_grad()
def temperature_quantiles(positive: Sequence[Tensor], negative: Sequence[Tensor]) -> dict[str, Tensor]:
    """The 5, 50 and 95 % quantiles of the logarithms of all heads' temperatures, by the name under which to log them.

    Args:
        positive: temperatures [B] of each head's positives.
        negative: some rows [n, K] of each head's; NaN where a pair is not compared.
    """
    sides = {"positive": torch.stack(list(positive)), "negative": torch.stack(list(negative))}
    shares = torch.linspace(0.05, 0.95, 3, dtype=positive[0].dtype, device=positive[0].device)
    return {f"log_temperature/{name}_{share}": value for name, rows in sides.items()
            for share, value in zip((5, 50, 95), rows.flatten().log().nanquantile(shares), strict=True)}
