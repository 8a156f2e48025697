"""The whole way: a stock KSampler in a real ComfyUI, with Parallel Model and without it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.server import Server, comfyui_server

STEPS = 8
ROUNDS = 4


def run() -> dict[str, Any]:
    """Alternate samplings of 8 steps on one device and on it and one worker, one thread each."""
    with comfyui_server(workers="cpu") as server:
        for parallel in (False, True, True):  # loads, starts the worker, and lets auto decide
            _sample(server, parallel, seed=1)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for number in range(ROUNDS):
            for parallel, seconds in taken.items():
                seconds.append(_sample(server, parallel, seed=2 + number))
        error = _relative_error(server.folder / "output")
    alone, together = median(taken[False]), median(taken[True])
    return {
        "steps": STEPS,
        "seconds_1_device": [round(value, 2) for value in taken[False]],
        "seconds_2_devices": [round(value, 2) for value in taken[True]],
        "ratio": round(alone / together, 3),
        "overhead_ms_per_step": round(1000 * (together - alone / 2) / STEPS, 1),
        "rel_err": error,
    }


def _sample(server: Server, parallel: bool, seed: int) -> float:
    sampler = {
        "model": ["2" if parallel else "1", 0], "positive": ["1", 1], "negative": ["1", 1],
        "latent_image": ["1", 2], "seed": seed + (time.time_ns() if seed == 1 else 0),
        "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    name = f"{'all' if parallel else 'one'}-{seed}"
    prompt = {
        "1": {"class_type": "BenchModel", "inputs": {}},
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": name}},
    }
    if parallel:
        prompt["2"] = {"class_type": "FleetParallelModel", "inputs": {"model": ["1", 0]}}
    return server.run(prompt)


def _relative_error(folder: Path) -> float:
    """The largest over the rounds, of what was saved."""
    from safetensors.torch import load_file

    errors = []
    for number in range(ROUNDS):
        whole, split = (
            load_file(next(folder.glob(f"{way}-{2 + number}_*")))["latent_tensor"]
            for way in ("one", "all")
        )
        errors.append(((split - whole).norm() / whole.norm()).item())
    return max(errors)
