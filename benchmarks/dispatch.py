"""What dispatch costs per unit: 100,000 units on 1,000 simulated workers, in one thread."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.simulation import large_fleet, simulate


def run() -> dict[str, float | int | bool]:
    scenario = large_fleet()
    result = simulate(scenario)
    exactly_once = not (result.duplicated or result.lost)
    return {"workers": len(scenario.paces), **asdict(result), "exactly_once": exactly_once}
