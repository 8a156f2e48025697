"""How much faster two workers are than one: 16 units of the measuring model, in one run.

Every worker has one thread. Rounds on a fleet of two and on a fleet of one alternate in one
process, so that both see the same machine; a round begins when the workers are warm.
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
    """Alternate fleets of two workers and of one; ``ratio`` is of their median times."""
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers in (2, 1):
            with cpu_fleet(workers) as fleet:
                _round(fleet, 2 * workers)  # loads the model and warms each worker
                seconds[workers].append(_round(fleet, UNITS))
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    return {
        "units": UNITS,
        "seconds_1_worker": [round(value, 2) for value in seconds[1]],
        "seconds_2_workers": [round(value, 2) for value in seconds[2]],
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
