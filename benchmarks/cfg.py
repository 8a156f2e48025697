"""The two conditionings of one step on two ranks, of unequal length, against one rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gang import compare, leader_of
from benchmarks.models import build
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Split
from comfyfleet.parallel.turns import Turns


def run() -> dict[str, Any]:
    """Compare a step of both conditionings."""
    model, call = build("wan")
    calls, turns = [call(1, 64), call(1, 48)], Turns()
    with leader_of("wan", 2) as leader:
        split = Split(ParallelDims(cfg=2), (1.0, 1.0))
        forward = partial(leader.forward, split, model, model._forward)
        return compare(
            lambda: torch.cat([model._forward(*made.args, **made.kwargs) for made in calls]),
            lambda: torch.cat(
                turns.run([partial(forward, calls[i], i, turns.waiting) for i in range(2)])
            ),
        )
