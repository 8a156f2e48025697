"""How fast results travel: 16 images of 1024x1024 float32, on the path of a collector's results.

From a unit's start on a worker that has the images in its cache to one joined batch in the
master's own memory: ComfyUI's run of the return node, pack, Ray's object store, unpack, join.
Compared, in the same rounds, with a plain copy of the same bytes (numpy's ``copy``: into new
memory, as a result needs it), with the same copy into memory that is there already (no result can
be had that way: ``ratio_memcpy_warm`` is against the machine's own limit), and with what the peer
does for each image: 8-bit PNG, base64, JSON, and back.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import cpu_fleet, units_of
from comfyfleet.config import find_comfyui
from comfyfleet.fleet import Fleet

IMAGES = 16
SIDE = 1024
ROUNDS = 7
#: The peer's coding takes seconds: fewer rounds say enough.
PNG_ROUNDS = 2


def run() -> dict[str, Any]:
    """Alternate the ways; each is judged by its fastest round."""
    sys.path.insert(0, str(find_comfyui()))
    with cpu_fleet(1) as fleet:
        images = _carried(fleet)
        array = images.numpy()
        there = array.copy()
        ours, plain, warm, png = [], [], [], []
        for number in range(ROUNDS):
            ours.append(_seconds(lambda: _carried(fleet)))
            plain.append(_seconds(array.copy))
            warm.append(_seconds(lambda: np.copyto(there, array)))
            if number < PNG_ROUNDS:
                png.append(_seconds(lambda: _through_png(images)))
    rate = images.nbytes / min(ours)
    return {
        "megabytes": round(images.nbytes / 1e6, 1),
        "megabytes_per_second": round(rate / 1e6),
        "seconds": [round(seconds, 4) for seconds in ours],
        "seconds_memcpy": [round(seconds, 4) for seconds in plain],
        "seconds_png": [round(seconds, 2) for seconds in png],
        "seconds_memcpy_warm": [round(seconds, 4) for seconds in warm],
        "ratio_memcpy": round(min(plain) / min(ours), 3),
        "ratio_memcpy_warm": round(min(warm) / min(ours), 3),
        "ratio_png": round(min(png) / min(ours), 1),
    }


def _carried(fleet: Fleet) -> torch.Tensor:
    """One unit's images, joined in this process."""
    from comfyfleet.comfy.join import join_images
    from comfyfleet.comfy.values import unpack

    images = {"seed": 0, "count": IMAGES, "side": SIDE}
    prompt = {
        "1": {"class_type": "BenchImages", "inputs": images},
        "2": {"class_type": "FleetReturn", "inputs": {"images": ["1", 0]}},
    }
    run = fleet.submit(units_of([prompt]))
    run.wait()
    packed = run.results()[0].result.values
    assert packed is not None
    return join_images([unpack(packed, copy=False)["images"]])


def _through_png(images: torch.Tensor) -> None:
    """What the peer does: one JSON body per image, level 0 PNG, decoded on the other side."""
    for image in images:
        pixels = (image.numpy() * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG", compress_level=0)
        body = json.dumps({"image": base64.b64encode(file.getvalue()).decode()})
        received = base64.b64decode(json.loads(body)["image"])
        with Image.open(io.BytesIO(received)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        torch.from_numpy(pixels.astype(np.float32) / 255.0)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
