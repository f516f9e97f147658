"""Twenty losses of every method, against those in tests/golden/losses.txt: a change that moves one is seen."""

import pytest

from tests.golden import losses
from tests.test_contract import CASES


@pytest.mark.filterwarnings("ignore:the loss of .* sits at")
@pytest.mark.parametrize("name", CASES)
def test_twenty_losses_are_as_recorded(name):
    recorded = losses.read()
    assert name in recorded, f"record the losses of a new method: python -m tests.golden.losses {name!r}"
    assert losses.twenty(CASES[name]) == pytest.approx(recorded[name], rel=1e-6, abs=1e-7)


def test_no_losses_are_recorded_of_a_method_that_is_gone():
    assert not losses.read().keys() - CASES.keys()
