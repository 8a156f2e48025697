"""One forward of two pictures, its batch split over two ranks, against one rank."""

from __future__ import annotations

from typing import Any

from benchmarks.gang import compare, leader_of
from benchmarks.models import build
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Split


def run() -> dict[str, Any]:
    """Compare a forward of batch 2."""
    model, call = build("wan")
    made = call(2, 64)
    with leader_of("wan", 2) as leader:
        split = Split(ParallelDims(batch=2), (1.0, 1.0))
        return compare(
            lambda: model._forward(*made.args, **made.kwargs),
            lambda: leader.forward(split, model, model._forward, made),
        )
