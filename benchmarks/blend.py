"""How long it takes to cut all tiles out of an 8K picture and to draw them again, in one thread."""

from __future__ import annotations

import time
from typing import Any

import torch

from comfyfleet.tiles.canvas import Canvas
from comfyfleet.tiles.steps import Layout

WIDTH, HEIGHT = 7680, 4320


def run() -> dict[str, Any]:
    """Both ways to blend; ``seconds`` is the slower one."""
    torch.set_num_threads(1)
    picture = torch.rand(1, HEIGHT, WIDTH, 3)
    layout = Layout(tile_width=512, tile_height=512, padding=32, mask_blur=8)
    taken = {blend: _blend(picture, layout, blend) for blend in ("progressive", "independent")}
    return {
        "tiles": len(layout.steps(WIDTH, HEIGHT)),
        **{f"seconds_{blend}": round(seconds, 2) for blend, seconds in taken.items()},
        "seconds": round(max(taken.values()), 2),
        "seconds_peer": 302,
    }


def _blend(picture: torch.Tensor, layout: Layout, blend: str) -> float:
    canvas = Canvas(picture.clone(), layout, progressive=blend == "progressive")
    begun = time.perf_counter()
    while not canvas.done:
        number = canvas.begin()
        canvas.put(number, [crop + 0.01 for crop in canvas.crops(number)])
    return time.perf_counter() - begun
