"""How much faster two workers are than one: 16 units of the measuring model, in one run.

Every worker has one thread. The two-worker and the one-worker round alternate within one process
on one fleet, so that both see the same machine; the second worker idles in the one-worker rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from benchmarks.common import cpu_fleet, units_of
from comfyfleet.fleet import Fleet

UNITS = 16
ROUNDS = 2


def run() -> dict[str, Any]:
    """Alternate rounds on two workers and on one; ``ratio`` is of their median times."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with cpu_fleet(1) as one, cpu_fleet(2) as two:
        for fleet in (one, two):
            _round(fleet, len(fleet.workers))  # loads and warms
        alone = []
        together = []
        for _ in range(ROUNDS):
            together.append(_round(two, UNITS))
            alone.append(_round(one, UNITS))
    ratio = statistics.median(alone) / statistics.median(together)
    return {
        "units": UNITS,
        "seconds_1_worker": [round(seconds, 2) for seconds in alone],
        "seconds_2_workers": [round(seconds, 2) for seconds in together],
        "ratio": round(ratio, 3),
    }


def _round(fleet: Fleet, count: int) -> float:
    begun = time.perf_counter()
    fleet.submit(units_of([_prompt(seed) for seed in range(count)])).wait()
    return time.perf_counter() - begun


def _prompt(seed: int) -> dict[str, Any]:
    """One sampling step of the measuring model, its latent returned."""
    sampler = {
        "model": ["1", 0],
        "positive": ["1", 1],
        "negative": ["1", 1],
        "latent_image": ["1", 2],
        # A new seed in every round: an equal prompt would come out of ComfyUI's cache.
        "seed": time.time_ns() + seed,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    return {
        "1": {"class_type": "BenchModel", "inputs": {}},
        "2": {"class_type": "KSampler", "inputs": sampler},
        "3": {"class_type": "FleetReturn", "inputs": {"value": ["2", 0]}},
    }
