"""The contract's point on torch.compile, in a file of its own: it takes as long as all others together."""

from functools import partial

import pytest
import torch

from ssl_zoo import contract
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.methods import SimCLR
from tests.conftest import small
from tests.test_contract import CASES, every_method

# Methods of which the compiler makes more graphs than one, and how many; the list may only become shorter. No graph is
# broken: SwAV compares the epoch with its queue's start, and MoCHi's draws are a function of the batch's number.
GRAPHS = {"SwAV, multi-crop with queue": 2, "MoCHi": 3, "MoCHi, decoupled": 3, "MoCHi, weighted": 3}

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*", "ignore:the loss of .* sits at")


def test_methods_with_more_graphs_are_among_the_cases():
    assert GRAPHS.keys() <= CASES.keys()


@every_method
def test_compiling_makes_one_graph_and_the_same_run(name):
    contract.compiled(CASES[name], graphs=GRAPHS.get(name, 1))


def test_a_run_compiled_to_kernels_is_the_same():
    # 16 channels: torch 2.15's compiled convolutions of 4 write past their memory on some CPUs, at c7a8131 as well
    # a small lr: at 0.05 four steps make a thousandth of what was a last digit
    contract.compiled(lambda: small(SimCLR, encoder=NarrowResNet(16, 2), projector=(16, 16),
                                    optimizer=partial(torch.optim.SGD, lr=0.005, momentum=0.9)), "inductor")
