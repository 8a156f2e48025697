"""A tiled VAE decode on two devices against one, each of one thread."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.server import Server, comfyui_server

SIDE = 1024
ROUNDS = 2


def run() -> dict[str, Any]:
    """A latent of 1024x1024 through a VAE of the size of SD's at a quarter of its width."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    digests: dict[int, list[str]] = {1: [], 2: []}
    for devices in (2, 1):
        with comfyui_server(workers="cpu" if devices == 2 else "0") as server:
            _decode(server, 512, seed=time.time_ns())
            while devices == 2 and server.fleet() is None:
                time.sleep(0.1)
            _decode(server, 768, seed=time.time_ns())
            for number in range(ROUNDS):
                seconds, digest = _decode(server, SIDE, seed=number)
                taken[devices].append(seconds)
                digests[devices].append(digest)
    return {
        "seconds_1_device": [round(seconds, 2) for seconds in taken[1]],
        "seconds_2_devices": [round(seconds, 2) for seconds in taken[2]],
        "ratio": round(median(taken[1]) / median(taken[2]), 3),
        "equal": digests[1] == digests[2],
    }


def _decode(server: Server, side: int, seed: int) -> tuple[float, str]:
    decode = {"samples": ["1", 1], "vae": ["1", 0], "tile_size": 512, "overlap": 64}
    prompt = {
        "1": {"class_type": "BenchVAE", "inputs": {"side": side, "seed": seed}},
        "2": {"class_type": "FleetVAEDecode", "inputs": decode},
        "3": {"class_type": "BenchDigest", "inputs": {"image": ["2", 0]}},
    }
    entry = server.finish(server.queue(prompt))
    at = {name: what["timestamp"] for name, what in entry["status"]["messages"]}
    seconds = (at["execution_success"] - at["execution_start"]) / 1000
    return seconds, entry["outputs"]["3"]["digest"][0]
