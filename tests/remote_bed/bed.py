"""ComfyUIs elsewhere, and units for them."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from comfyfleet.client.mux import Mux
from comfyfleet.config import Remote
from comfyfleet.fleet import Fleet, Run, RunEvent, new_run_id
from comfyfleet.fleet.cluster import Cluster
from comfyfleet.fleet.ray_node import NodePlan, RayNode
from comfyfleet.fleet.session import Session, python_path
from comfyfleet.work import Result, Unit
from tests.queue_bed.bed import PACK
from tests.support import Master, free_port

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


@contextmanager
def line_to(master: Master, folder: Path) -> Iterator[Remote]:
    """As a worker that has dialled in: through two ends of a mux, on a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    path = folder / "line.sock"

    async def begin() -> tuple[asyncio.Server, Mux, Mux]:
        def connect() -> Any:
            return asyncio.open_connection("127.0.0.1", master.port)

        there: Mux = Mux(lambda frame: here.feed(frame), connect)
        here: Mux = Mux(lambda frame: there.feed(frame))
        return await asyncio.start_unix_server(here.accept, path), here, there

    async def end() -> None:
        server.close()
        await here.close()
        await there.close()
        loop.call_soon(loop.stop)

    server, here, there = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield replace(remote("box", master), url="http://joined", socket=path)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        thread.join(10)
        loop.close()


@contextmanager
def cluster_of_one(comfyui: Path) -> Iterator[Cluster]:
    """A head on this machine's loopback, which offers its CPU to one worker."""
    token, port = secrets.token_hex(32), free_port()
    with closing(Session()) as session:
        plan = NodePlan(
            folder=session.folder,
            token_file=session.write_token(token),
            head=None,
            port=port,
            address="127.0.0.1",
            cpu_slots=1,
            object_store_bytes=1 << 28,
            environment={"PYTHONPATH": python_path(), "COMFYUI_PATH": str(comfyui)},
        )
        node = RayNode(plan)
        try:
            node.wait_until_up()
            yield Cluster(host="127.0.0.1", port=port, token=token)
        finally:
            node.end()


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
