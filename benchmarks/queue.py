"""ComfyUI's own queue on two workers against one: 24 prompts of unequal cost.

Prompts are queued at /prompt of a real ComfyUI, all at once, and are over when the last one is in
its history. The master computes nothing, and every worker has one thread. For the rounds on one
worker the other is disabled, so both kinds of round see the same machine and the same processes.
"""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any

from benchmarks.server import Server, comfyui_server

PROMPTS = 24
ROUNDS = 3
#: Matrix products per unit of cost: some tenths of a second.
_AMOUNT = 60


def run() -> dict[str, Any]:
    """Alternate rounds on two workers and on one; ``ratio`` is of their median times."""
    seconds: dict[int, list[float]] = {2: [], 1: []}
    with comfyui_server(workers="cpu,cpu") as server:
        server.share()
        _round(server, costs=[1, 1, 1, 1])  # warms both workers
        for number in range(ROUNDS):
            for workers, taken in seconds.items():
                server.tell_worker("cpu-1", "enable" if workers == 2 else "disable")
                taken.append(_round(server, _costs(number)))
    return {
        "prompts": PROMPTS,
        "seconds_1_worker": [round(value, 2) for value in seconds[1]],
        "seconds_2_workers": [round(value, 2) for value in seconds[2]],
        "ratio": round(median(seconds[1]) / median(seconds[2]), 3),
    }


def _costs(seed: int) -> list[int]:
    """Each cost from 1 to 4 equally often, in an order that nobody knows before."""
    costs = [1 + number % 4 for number in range(PROMPTS)]
    random.Random(seed).shuffle(costs)
    return costs


def _round(server: Server, costs: list[int]) -> float:
    begun = time.perf_counter()
    for prompt_id in [server.queue(_prompt(cost)) for cost in costs]:
        server.finish(prompt_id)
    return time.perf_counter() - begun


def _prompt(cost: int) -> dict[str, Any]:
    # A new seed each time: an equal prompt would come out of ComfyUI's cache.
    picture = {"seed": time.time_ns(), "count": 1, "side": 64}
    return {
        "1": {"class_type": "BenchImages", "inputs": picture},
        "2": {"class_type": "BenchWork", "inputs": {"image": ["1", 0], "amount": _AMOUNT * cost}},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "queue"},
        },
    }
