"""Sharing whole things by weight."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.split import largest_remainder


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),  # ties go to the earlier index
        (10, [3, 1], [8, 2]),
        (2, [1, 1, 1], [1, 1, 0]),
        (5, [0, 1, 0], [0, 5, 0]),
        (1, [0.0, 0.0001], [0, 1]),
        (0, [1, 2], [0, 0]),
        (7, [2.5], [7]),
        (3, [1e308, 1e308], [2, 1]),  # the sum of the weights overflows
    ],
)
def test_shares(total, weights, shares):
    assert largest_remainder(total, weights) == shares


@given(
    total=st.integers(0, 10**30),
    weights=st.lists(st.floats(0, 1e300), min_size=1, max_size=50).filter(any),
)
def test_shares_sum_to_the_total_and_follow_the_weights(total, weights):
    shares = largest_remainder(total, weights)
    exact = [Fraction(weight) for weight in weights]
    assert sum(shares) == total
    for share, weight in zip(shares, exact, strict=True):
        assert share >= 0
        assert weight > 0 or share == 0
        assert abs(share - total * weight / sum(exact)) < 1


@pytest.mark.parametrize(
    ("total", "weights", "message"),
    [
        (-1, [1], "total is -1"),
        (1, [], "weights is empty"),
        (1, [1, -2.0], r"weights\[1\] is -2.0"),
        (1, [math.nan], r"weights\[0\] is nan"),
        (1, [1, math.inf], r"weights\[1\] is inf"),
        (1, [0, 0.0], "all zero"),
    ],
)
def test_what_cannot_be_shared_is_refused(total, weights, message):
    with pytest.raises(ValueError, match=message):
        largest_remainder(total, weights)
