"""The demo: two workers draw 16 pictures from 4 prompts with the embedded model.

    make demo

The pictures, ``grid.png`` and the list of who drew what lie in ``output/demo/`` afterwards.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from comfyfleet.cli.run import run_batch
from comfyfleet.cli.show import console
from comfyfleet.config import demo_dir, find_comfyui
from comfyfleet.errors import ComfyFleetError
from comfyfleet.fleet import Delivery, Fleet, Host
from comfyfleet.fleet.batch import Batch, OutputFolder
from comfyfleet.graph import parse_prompt, set_input
from comfyfleet.planner import Device, find_devices

PROMPTS = (
    "a large red star, center, on white",
    "a small blue circle, top left, on gray",
    "a large green triangle, bottom right, on black",
    "a small purple square, center, on white",
)
PICTURES = 16
#: Side of a picture and height of the line below it, in pixels.
SIDE, LABEL = 128, 16
OUT = Path("output/demo")


def demo() -> None:
    """Draw all pictures as one batch, and a sheet of them."""
    shutil.rmtree(OUT, ignore_errors=True)
    host = Host(comfyui=find_comfyui(), cwd=Path.cwd())
    batch = Batch.of(workflow(), count=PICTURES, seed=1, name="demo")
    console.print("starting 2 workers (about ten seconds)")
    begun = time.monotonic()
    with Fleet(two_devices(), host) as fleet:
        console.print(f"ready after {time.monotonic() - begun:.1f} s")
        deliveries = run_batch(fleet, batch, OutputFolder(OUT, batch, resume=False), done=[])
    draw_sheet(deliveries).save(OUT / "grid.png")
    console.print(f"the pictures, and grid.png with all of them, are in {OUT}/")


def workflow() -> dict[str, Any]:
    """demo/workflow.json with a Fleet Value for its text: run i draws prompt i modulo 4."""
    text = (demo_dir() / "workflow.json").read_text(encoding="utf-8")
    prompt = parse_prompt(text, "demo/workflow.json")
    values = {"values": "\n".join(PROMPTS), "type": "STRING"}
    prompt["prompts"] = {"class_type": "FleetValue", "inputs": values}
    return set_input(prompt, '2.text=["prompts", 0]')


def two_devices() -> list[Device]:
    """Two accelerators if there are, else the CPU twice."""
    devices = find_devices()
    accelerators = [device for device in devices if device.kind != "cpu"]
    return accelerators[:2] if len(accelerators) >= 2 else [devices[-1]] * 2


def draw_sheet(deliveries: list[Delivery]) -> Image.Image:
    """All pictures, a row for each prompt, with the worker that drew each below it."""
    columns = PICTURES // len(PROMPTS)
    size = (columns * SIDE, len(PROMPTS) * (SIDE + LABEL))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for delivery in deliveries:
        column, row = divmod(delivery.unit.index, len(PROMPTS))
        x, y = column * SIDE, row * (SIDE + LABEL)
        (path,) = OUT.glob(f"{delivery.unit.index:04d}_*.png")
        with Image.open(path) as picture:
            sheet.paste(picture.convert("RGB"), (x, y))
        text = f"{delivery.worker_id} {delivery.seconds:.1f} s"
        pen.text((x + 4, y + SIDE + 2), text, fill="black")
    return sheet


if __name__ == "__main__":
    try:
        demo()
    except ComfyFleetError as error:
        sys.exit(f"demo: {error}")
