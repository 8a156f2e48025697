"""Two workers, one of them three times slower: does the fast one ever wait for it?

64 equal units in one run. A unit is a pause and no computation, so that what is measured is
dispatch and not the processor. The ideal is the total work over the sum of the measured speeds: 64
units, each worker doing as many of them per second as it did while it had one in hand, and no one
ever idle. A unit cannot be cut, so the best that is possible is a little above 1.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import cpu_fleet, units_of
from comfyfleet.fleet import Fleet
from comfyfleet.fleet.run import Delivery

UNITS = 64
#: Of a unit on the faster worker.
SECONDS = 0.4
SLOWER = 3


def run() -> dict[str, Any]:
    """One run of 64 units after one that measures the workers."""
    with tempfile.TemporaryDirectory() as orders, cpu_fleet(2) as fleet:
        (Path(orders) / "cpu-1.slow").write_text(str(SLOWER))
        _run(fleet, 8, orders)
        makespan, deliveries = _run(fleet, UNITS, orders)
    speeds = _speeds(deliveries)
    ideal = UNITS / sum(speeds.values())
    return {
        "units": UNITS,
        "units_per_second": {name: round(speed, 3) for name, speed in sorted(speeds.items())},
        "makespan_s": round(makespan, 2),
        "ideal_s": round(ideal, 2),
        "makespan_over_ideal": round(makespan / ideal, 3),
    }


def _run(fleet: Fleet, count: int, orders: str) -> tuple[float, list[Delivery]]:
    begun = time.perf_counter()
    running = fleet.submit(units_of([_prompt(number, orders) for number in range(count)]))
    running.wait()
    return time.perf_counter() - begun, running.results()


def _speeds(deliveries: Sequence[Delivery]) -> dict[str, float]:
    """Units per second of each worker, over the time in which it had one in hand."""
    seconds: dict[str, list[float]] = {}
    for delivery in deliveries:
        seconds.setdefault(delivery.worker_id, []).append(delivery.seconds)
    return {worker_id: len(taken) / sum(taken) for worker_id, taken in seconds.items()}


def _prompt(number: int, orders: str) -> dict[str, Any]:
    picture = {"seed": time.time_ns() + number, "count": 1, "side": 16}
    pause = {"image": ["1", 0], "seconds": SECONDS, "orders": orders}
    return {
        "1": {"class_type": "BenchImages", "inputs": picture},
        "2": {"class_type": "BenchPause", "inputs": pause},
        "3": {"class_type": "FleetReturn", "inputs": {"value": ["2", 0]}},
    }
