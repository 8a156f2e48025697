"""Share a number of whole things by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole shares proportional to ``weights``; they sum to ``total``.

    What rounding down leaves over goes to the largest remainders, ties to the earlier index.
    A weight of zero gets nothing.
    """
    _check(total, weights)
    largest = max(weights)
    scaled = [weight / largest for weight in weights]  # the plain sum could overflow to inf
    whole = math.fsum(scaled)
    quotas = [total * weight / whole for weight in scaled]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(
        (i for i, weight in enumerate(weights) if weight > 0),
        key=lambda i: (shares[i] - quotas[i], i),
    )
    # Fewer are left than there are positive weights, save for float error with a huge total.
    left, step = abs(total - sum(shares)), 1 if sum(shares) <= total else -1
    for k in range(left):
        shares[by_remainder[k % len(by_remainder)]] += step
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
