"""Small prompts, as clients send them."""

from __future__ import annotations

import json
from typing import Any

from comfyfleet.config import demo_dir


def demo(*, seed: int = 1, steps: int = 4, text: str = "a large red star, center, on white") -> Any:
    """The demo workflow, with fewer steps."""
    prompt = json.loads((demo_dir() / "workflow.json").read_text(encoding="utf-8"))
    prompt["5"]["inputs"].update(seed=seed, steps=steps)
    prompt["2"]["inputs"]["text"] = text
    return prompt


def collected(*, shares: int, seed: int = 1, steps: int = 4, delegate: bool = False) -> Any:
    """The demo workflow with a Fleet Seed and a Fleet Collector before the save node."""
    prompt = demo(steps=steps)
    prompt["8"] = {"class_type": "FleetSeed", "inputs": {"seed": seed}}
    prompt["5"]["inputs"]["seed"] = ["8", 0]
    inputs = {"images": ["6", 0], "shares": shares, "delegate": delegate}
    prompt["9"] = {"class_type": "FleetCollector", "inputs": inputs}
    prompt["7"]["inputs"]["images"] = ["9", 0]
    return prompt


def empty_images(*, sizes: str, shares: int, output: int = 0, **collector: Any) -> Any:
    """Black pictures, one width per line of ``sizes`` and share, collected and saved."""
    image = {"width": ["1", 0], "height": 16, "batch_size": 1, "color": 0}
    collect = {"images": ["2", 0], "shares": shares, "delegate": False, **collector}
    return {
        "1": {"class_type": "FleetValue", "inputs": {"values": sizes, "type": "INT"}},
        "2": {"class_type": "EmptyImage", "inputs": image},
        "3": {"class_type": "FleetCollector", "inputs": collect},
        "4": {
            "class_type": "SaveImage",
            "inputs": {"images": ["3", output], "filename_prefix": "empty"},
        },
    }
