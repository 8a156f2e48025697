"""An upscale by tiles on two devices against one: 4096x4096, 64 tiles of a second and more.

A device is the ComfyUI that the user talks to, or a worker; each has one thread. The sampling of
each tile costs a second of one thread, besides what the demo model and its VAE cost.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.server import Server, comfyui_server

SIDE = 4096
#: Mode -> inputs of the node.
MODES = {
    "": {"blend": "progressive", "mode_type": "Linear"},
    "_chess": {"blend": "progressive", "mode_type": "Chess"},
    "_independent": {"blend": "independent", "mode_type": "Linear"},
}
#: One second of a thread that multiplies matrices; prints how many.
_CALIBRATE = """
import time, torch
torch.set_num_threads(1)
m, n, begun = torch.full((512, 512), 1 / 512), 0, 0.0
for i in range(400):
    begun = time.perf_counter() if i == 100 else begun
    m = m @ m
print(round(300 / (time.perf_counter() - begun)))
"""


def run() -> dict[str, Any]:
    """Each mode on one device and on two; ``equal``: all pictures are the same bits."""
    amount = int(_python(_CALIBRATE).communicate()[0])
    taken: dict[int, dict[str, float]] = {}
    digests: dict[int, dict[str, str]] = {}
    for devices in (2, 1):
        with comfyui_server(workers="cpu" if devices == 2 else "0") as server:
            _warm(server, devices)
            found = {mode: _upscale(server, amount, how) for mode, how in MODES.items()}
        taken[devices] = {mode: seconds for mode, (seconds, _) in found.items()}
        digests[devices] = {mode: digest for mode, (_, digest) in found.items()}
    figures = {"tiles": (SIDE // 512) ** 2, "equal": digests[1] == digests[2]}
    for mode in MODES:
        figures[f"seconds_1_device{mode}"] = round(taken[1][mode], 1)
        figures[f"seconds_2_devices{mode}"] = round(taken[2][mode], 1)
        figures[f"ratio{mode}"] = round(taken[1][mode] / taken[2][mode], 3)
    return {**figures, "ratio_of_two_comfyuis": _ceiling(amount)}


def _warm(server: Server, devices: int) -> None:
    """The models are loaded, and the worker has computed tiles."""
    for _ in range(2):
        _upscale(server, 1, {"blend": "independent", "mode_type": "Linear"}, side=1024)
        while devices == 2 and server.fleet() is None:
            time.sleep(0.1)


def _upscale(
    server: Server, amount: int, how: dict[str, str], side: int = SIDE
) -> tuple[float, str]:
    """Seconds, as ComfyUI's history has them, and what came."""
    picture = {"width": side, "height": side, "batch_size": 1, "color": 0x6080A0}
    inputs = {
        "image": ["2", 0], "model": ["3", 0], "positive": ["4", 0], "negative": ["4", 0],
        "vae": ["1", 2], "upscale_by": 1.0, "seed": 3 + (time.time_ns() if side != SIDE else 0),
        "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.3,
        "tile_width": 512, "tile_height": 512, "mask_blur": 8, "tile_padding": 32,
        "seam_fix_mode": "None", "seam_fix_denoise": 1.0, "seam_fix_width": 64,
        "seam_fix_mask_blur": 8, "seam_fix_padding": 16, "force_uniform_tiles": True,
        "tiled_decode": False, "batch_size": 1, **how,
    }  # fmt: skip
    prompt = {
        "1": {"class_type": "FleetDemoModel", "inputs": {}},
        "2": {"class_type": "EmptyImage", "inputs": picture},
        "3": {"class_type": "BenchSampling", "inputs": {"model": ["1", 0], "amount": amount}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a star", "clip": ["1", 1]}},
        "5": {"class_type": "FleetUpscale", "inputs": inputs},
        "6": {"class_type": "BenchDigest", "inputs": {"image": ["5", 0]}},
    }
    entry = server.finish(server.queue(prompt))
    at = {name: what["timestamp"] for name, what in entry["status"]["messages"]}
    seconds = (at["execution_success"] - at["execution_start"]) / 1000
    return seconds, entry["outputs"]["6"]["digest"][0]


def _ceiling(amount: int) -> float:
    """What two ComfyUIs that know nothing of each other get done, against one of them.

    Each redraws a picture of a quarter of the size, alone and then at the same time as the other.
    """
    how, side = MODES["_independent"], SIDE // 2
    with comfyui_server(workers="0") as one, comfyui_server(workers="0") as other:
        for server in (one, other):
            _warm(server, 1)
        alone, _ = _upscale(one, amount, how, side=side)
        with ThreadPoolExecutor() as pool:
            # By one product more: what was computed alone would come out of ComfyUI's cache.
            begun = [pool.submit(_upscale, each, amount + 1, how, side) for each in (one, other)]
            together = max(each.result()[0] for each in begun)
    return round(2 * alone / together, 3)


def _python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
