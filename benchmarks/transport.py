"""How fast results travel: 16 images of 1024x1024 float32, on the path of a collector's results.

From the tensors in the worker's return node to one joined batch in the master's own memory:
pack, Ray's object store, unpack, join. Against a plain copy of the same bytes, and against what
the peer does with each image: 8-bit PNG, base64, JSON, and back.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.common import cpu_fleet, units_of
from comfyfleet.config import find_comfyui

IMAGES = 16
SIDE = 1024
ROUNDS = 5


def run() -> dict[str, Any]:
    """Alternate our path, a plain copy and the peer's coding; rates are of the best round."""
    # Like a master: its result must be in its own memory, so the join is part of the path.
    with cpu_fleet(1) as fleet:
        sys.path.insert(0, str(find_comfyui()))
        from comfyfleet.comfy.join import join_images
        from comfyfleet.comfy.values import unpack

        ours, plain = [], []
        for round_number in range(ROUNDS):
            units = units_of([_prompt(round_number)])
            fleet.submit(units).wait()  # makes the images; the next unit only carries them
            units = units_of([_prompt(round_number)])
            run = fleet.submit(units)
            run.wait()


def _prompt(seed: int) -> dict[str, Any]:
    images = {"seed": seed, "count": IMAGES, "side": SIDE}
    return {
        "1": {"class_type": "BenchImages", "inputs": images},
        "2": {"class_type": "FleetReturn", "inputs": {"images": ["1", 0]}},
    }
