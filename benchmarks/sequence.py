"""One forward split over its tokens, against the same forward on one rank, one thread per rank."""

from __future__ import annotations

from typing import Any

from benchmarks.gang import compare, leader_of
from benchmarks.models import build
from comfyfleet.errors import InputError
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Split


def run(
    family: str = "wan", ranks: int = 2, ulysses: int | None = None, ring: int = 1
) -> dict[str, Any]:
    """Compare; ``ulysses`` is what the ring leaves of the ranks if it is not given."""
    dims = ParallelDims(ulysses=ulysses or max(1, ranks // max(1, ring)), ring=ring)
    if dims.size != ranks:
        raise InputError(f"ulysses {dims.ulysses} x ring {ring} is {dims.size}, not {ranks} ranks.")
    model, call = build(family)
    made = call(1, 64)
    with leader_of(family, ranks) as leader:
        split = Split(dims, (1.0,) * ranks)
        figures = compare(
            lambda: model._forward(*made.args, **made.kwargs),
            lambda: leader.forward(split, model, model._forward, made),
        )
    return {"family": family, "split": str(dims), **figures}
