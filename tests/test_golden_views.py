"""A recipe draws what it drew at c7a8131: the same tables to the bit, and the same views to a millionth."""

import numpy as np
import pytest

from tests.golden.views import FILE, KEYS, ROWS, drawn, seen


@pytest.fixture(scope="module")
def before():
    return np.load(FILE)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("key", KEYS)
def test_tables_are_those_of_before_bit_for_bit(before, name, key):
    for column, numbers in drawn(name, key).items():
        assert np.array_equal(numbers, before[column]), column


@pytest.mark.parametrize("name", ROWS)
def test_views_are_those_of_before(before, name):
    for view, numbers in seen(name, KEYS[1]).items():
        assert np.abs(numbers - before[view]).max() < 1e-6, view
