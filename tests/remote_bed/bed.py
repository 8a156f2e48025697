"""ComfyUIs elsewhere, and units for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from comfyfleet.config import Remote
from comfyfleet.fleet import Fleet, Run, RunEvent, new_run_id
from comfyfleet.work import Result, Unit
from tests.queue_bed.bed import PACK
from tests.support import Master

#: A plain ComfyUI that nobody touched, and one with this extension.
KINDS = ("plain", "extension")
Prompt = dict[str, dict[str, Any]]


@contextmanager
def comfyuis_elsewhere(comfyui: Path, folder: Path) -> Iterator[dict[str, Master]]:
    """One of each kind, which know nothing of any fleet."""
    running = {
        kind: Master(
            comfyui, folder / kind, workers="0", packs={"queue_bed": PACK}, plain=kind == "plain"
        )
        for kind in KINDS
    }
    yield running
    for each in running.values():
        each.close()


def remote(name: str, master: Master) -> Remote:
    return Remote(name=name, url=f"http://127.0.0.1:{master.port}", token=master.token)


class Watched:
    """What a run tells."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[RunEvent]:
        return [event for event in self.events if event.kind == kind]


def begin(fleet: Fleet, *unit_prompts: Prompt, watched: Watched | None = None) -> Run:
    run_id = new_run_id()
    units = [Unit(run_id=run_id, index=i, prompt=each) for i, each in enumerate(unit_prompts)]
    return fleet.submit(units, watched)


def results(run: Run) -> list[Result]:
    assert run.wait(120)
    return [delivery.result for delivery in run.results()]


def returning(prompt: Prompt, link: list[Any], name: str = "images") -> Prompt:
    return prompt | {"return": {"class_type": "FleetReturn", "inputs": {name: link}}}


def pixels(result: Result, name: str = "images") -> np.ndarray:
    assert result.values is not None
    (ref,) = result.values.skeleton[name]
    return result.values.buffers[ref.buffer].view(ref.dtype).reshape(ref.shape)
