"""Share a number of whole things by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole shares proportional to ``weights``; they sum to ``total``.

    What rounding down leaves over goes to the largest remainders, ties to the earlier index.
    A weight of zero gets nothing.
    """
    _check(total, weights)
    exact = [Fraction(weight) for weight in weights]  # floats would lose units of large totals
    whole = sum(exact)
    quotas = [total * weight / whole for weight in exact]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: (shares[i] - quotas[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _check(total: int, weights: Sequence[float]) -> None:
    if total < 0:
        raise ValueError(f"total is {total}; it must be 0 or more")
    if not weights:
        raise ValueError("weights is empty; at least one weight is needed")
    for i, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights[{i}] is {weight}; a weight must be finite and 0 or more")
    if not any(weights):
        raise ValueError(f"weights are all zero ({len(weights)} of them); one must be above 0")
