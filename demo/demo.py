"""The demo: two workers draw 16 pictures from 4 prompts with the embedded model.

    make demo

The pictures, ``grid.png`` and the list of who drew what lie in ``output/demo/`` afterwards.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from comfyfleet.cli import run as run_cli
from comfyfleet.cli.show import console
from comfyfleet.config import demo_dir, find_comfyui
from comfyfleet.errors import ComfyFleetError
from comfyfleet.fleet import Delivery, Fleet, Host
from comfyfleet.fleet.job import Job, OutputFolder
from comfyfleet.planner import choose_devices, find_devices

PROMPTS = (
    "a large red star, center, on white",
    "a small blue circle, top left, on yellow",
    "a large green triangle, bottom right, on black",
    "a small purple square, center, on white",
)
SEEDS_PER_PROMPT = 4
#: The text of the positive prompt in demo/workflow.json, as NODE.INPUT.
TEXT_INPUT = "2.text"
OUT = Path("output/demo")


def demo() -> None:
    """Draw all pictures, one job for each prompt, on one fleet."""
    shutil.rmtree(OUT, ignore_errors=True)
    host = Host(comfyui=find_comfyui(), cwd=Path.cwd())
    console.print("starting 2 workers (about ten seconds)")
    begun = time.monotonic()
    rows = []
    with Fleet(choose_devices(_workers(), find_devices()), host, private_output=True) as fleet:
        console.print(f"ready after {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()
        for number, prompt in enumerate(PROMPTS):
            console.rule(prompt)
            rows.append(_draw(fleet, number, prompt))
    _grid(rows)
    seconds = time.monotonic() - begun
    console.print(f"16 pictures in {seconds:.1f} s; they and grid.png are in {OUT}/")


def _workers() -> str:
    """Two workers: on two accelerators if there are, else two on the CPU."""
    accelerators = [device.id for device in find_devices() if device.kind != "cpu"]
    return ",".join(accelerators[:2]) if len(accelerators) >= 2 else "cpu,cpu"


def _draw(fleet: Fleet, number: int, prompt: str) -> list[tuple[Path, Delivery]]:
    job = Job.read(
        demo_dir() / "workflow.json",
        count=SEEDS_PER_PROMPT,
        seed=100 * number,
        assignments=[f"{TEXT_INPUT}={prompt}"],
    )
    folder = OutputFolder(OUT / f"{number}", job, resume=False)
    deliveries = run_cli.run_job(fleet, job, folder, done=[])
    paths = sorted(folder.folder.glob("*.png"))
    by_index = sorted(deliveries, key=lambda each: each.unit.index)
    return list(zip(paths, by_index, strict=True))


def _grid(rows: list[list[tuple[Path, Delivery]]]) -> None:
    """All pictures, a row for each prompt, with the worker that drew each below it."""
    side, label = 128, 16
    sheet = Image.new("RGB", (SEEDS_PER_PROMPT * side, len(rows) * (side + label)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (path, delivery) in enumerate(row):
            place = (x * side, y * (side + label))
            with Image.open(path) as picture:
                sheet.paste(picture.convert("RGB"), place)
            text = f"{delivery.worker_id} {delivery.seconds:.1f} s"
            pen.text((place[0] + 4, place[1] + side + 2), text, fill="black")
    sheet.save(OUT / "grid.png")


if __name__ == "__main__":
    try:
        demo()
    except ComfyFleetError as error:
        sys.exit(f"demo: {error}")
