"""ComfyUIs elsewhere, and units for them."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
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

#: Where a ComfyUI of another version lies that is to be the plain one, and its Python.
OTHER_PATH, OTHER_PYTHON = "COMFYUI_ELSEWHERE_PATH", "COMFYUI_ELSEWHERE_PYTHON"
#: For a node of a cluster: its clock is an hour late.
LATE = {"PYTHONPATH": f"{Path(__file__).with_name('late')}{os.pathsep}{python_path()}"}
#: A plain ComfyUI that nobody touched, and one with this extension.
KINDS = ("plain", "extension")
Prompt = dict[str, dict[str, Any]]


@contextmanager
def comfyuis_elsewhere(comfyui: Path, folder: Path) -> Iterator[dict[str, Master]]:
    """One of each kind, which know nothing of any fleet."""
    packs = {"queue_bed": PACK}
    other = Path(os.environ.get(OTHER_PATH) or comfyui)
    python = os.environ.get(OTHER_PYTHON) or sys.executable
    with ExitStack() as stack:

        def begun(where: Path, name: str, **how: Any) -> Master:
            made = Master(where, folder / name, workers="0", packs=packs, **how)
            return stack.enter_context(closing(made))

        yield {
            "plain": begun(other, "plain", plain=True, python=python),
            "extension": begun(comfyui, "extension"),
        }


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

    server, here, there = asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
    try:
        yield replace(remote("box", master), url="http://joined", socket=path)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(60)
        thread.join(60)
        loop.close()


@contextmanager
def cluster_of_one(comfyui: Path, *, cpu_slots: int = 1, **environment: str) -> Iterator[Cluster]:
    """A head on this machine's loopback, which offers its CPU to so many workers."""
    cluster = Cluster(host="127.0.0.1", port=free_port(), token=secrets.token_hex(32))
    with _node(cluster, "127.0.0.1", comfyui, head=None, cpu_slots=cpu_slots, **environment):
        yield cluster


@contextmanager
def node_of(cluster: Cluster, address: str, comfyui: Path) -> Iterator[None]:
    """A further node, at another address of loopback."""
    with _node(cluster, address, comfyui, head=cluster.address):
        yield


@contextmanager
def _node(
    cluster: Cluster,
    address: str,
    comfyui: Path,
    *,
    head: str | None,
    cpu_slots: int = 1,
    **environment: str,
) -> Iterator[None]:
    usual = {"PYTHONPATH": python_path(), "COMFYUI_PATH": str(comfyui)}
    with closing(Session()) as session:
        plan = NodePlan(
            folder=session.folder,
            token_file=session.write_token(cluster.token),
            head=head,
            port=cluster.port,
            address=address,
            cpu_slots=cpu_slots,
            object_store_bytes=1 << 28,
            environment={**usual, **environment},
        )
        node = RayNode(plan)
        try:
            node.wait_until_up()
            yield
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
