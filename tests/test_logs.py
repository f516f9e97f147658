"""What a method logs reaches Lightning also out of a compiled loss, of which torch.compile makes one graph."""

import pytest
import torch

from ssl_zoo.contract.runs import batches, seeded
from ssl_zoo.logs import kept_while_compiled, log_kept
from tests.test_contract import CASES


@pytest.mark.parametrize("name", ["SwAV, multi-crop with queue", "MoCHi"])
def test_the_compiler_passes_queues_draws_and_logs_without_a_break(name):
    torch._dynamo.reset()
    method = seeded(CASES[name])
    assert torch._dynamo.explain(method.training_loss)(next(batches(method))).graph_break_count == 0
    assert method.kept


class Logging:
    """What has a `log` and keeps what it gets while compiled, as a Method."""

    def __init__(self):
        self.kept, self.logged = [], []

    @kept_while_compiled
    def log(self, name, value, **options):
        self.logged.append((name, value.item(), options))

    def loss(self, x):
        self.log("sum", x.sum(), batch_size=len(x))
        self.log("largest", x.max())
        return x.square().mean()


def test_a_compiled_loss_logs_the_same_once_it_is_there():
    plain, compiled = Logging(), Logging()
    loss = torch.compile(compiled.loss, backend="eager", fullgraph=True)
    for x in torch.rand(2, 3):
        plain.loss(x)
        loss(x)
        log_kept(plain)
        log_kept(compiled)
        assert not compiled.kept
    assert len(plain.logged) == 4
    assert plain.logged == compiled.logged
