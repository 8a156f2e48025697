"""Routes for those who watch the fleet: state, events, metrics, logs. See docs/watching.md."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from aiohttp import web

from comfyfleet.api import routes
from comfyfleet.comfy import inventory, prompts
from comfyfleet.errors import FleetError
from comfyfleet.extension.master import master
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call, NotFound
from comfyfleet.extension.routes.control import state_of_sharing
from comfyfleet.fleet import MASTER, Fleet
from comfyfleet.fleet.insight import Happened, Memory, Snapshot, WorkerStatus
from comfyfleet.fleet.insight_memory import rss_of
from comfyfleet.fleet.insight_metrics import CONTENT_TYPE, metrics
from comfyfleet.fleet.logs import tail

#: How many may read the stream at once.
_MAX_READERS = 32
#: How often a reader who hears nothing else is told that we are here, and we see if it is.
_PULSE_S = 5.0
#: How often a reader looks for a fleet where there is none.
_LOOK_S = 1.0


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.STATUS, _status)
    serve(routes.LOG, _log)
    serve(routes.METRICS, _metrics)
    serve(routes.EVENTS, _events)


async def _status(_call: Call) -> dict[str, Any]:
    return await asyncio.to_thread(_state, master().seen_fleet)


async def _metrics(_call: Call) -> web.Response:
    fleet = master().seen_fleet
    snapshot = await asyncio.to_thread(_snapshot, fleet)
    text = metrics(snapshot, running=fleet is not None and fleet.usable)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def _log(call: Call) -> dict[str, Any]:
    # In a thread: who asks first looks for devices, which takes seconds.
    worker_id, known = call["worker"], await asyncio.to_thread(lambda: master().worker_names)
    if worker_id not in known:
        raise NotFound(f"no worker is called {worker_id!r}; choose {', '.join(known) or 'none'}.")
    elsewhere = await asyncio.to_thread(_log_elsewhere, worker_id, call["lines"])
    if elsewhere is not None:
        return elsewhere
    log = master().log_of(worker_id)
    if not log.is_file():
        raise NotFound(
            f"worker {worker_id} has written no log here: it was never started, or it is on a node "
            "of a cluster that does not answer now."
        )
    found = await asyncio.to_thread(tail, log, call["lines"])
    return {"worker": worker_id, "host": "", "file": str(log), "lines": found}


def _log_elsewhere(worker_id: str, lines: int) -> dict[str, Any] | None:
    """A log that lies on a node of a cluster."""
    fleet = master().seen_fleet
    info = next((each for each in fleet.workers if each.id == worker_id), None) if fleet else None
    if fleet is None or info is None or not info.host:
        return None
    found = fleet.care.log_elsewhere(worker_id, lines)
    if found is None:
        return None
    return {"worker": worker_id, "host": info.host, "file": info.log_file, "lines": found}


def _state(fleet: Fleet | None) -> dict[str, Any]:
    """All of it as JSON; without a fleet there is nobody in it."""
    return {
        "fleet": _life_of(fleet),
        "sharing": state_of_sharing(),
        **asdict(_snapshot(fleet)),
    }


def _life_of(fleet: Fleet | None) -> str:
    if fleet is None:
        return "none"
    if not fleet.started:
        return "starting"
    return "running" if fleet.usable else "ended"


def _snapshot(fleet: Fleet | None) -> Snapshot:
    if fleet is None:
        return Snapshot(seq=0, time=0.0)
    snapshot = fleet.snapshot()
    workers = (_with_device(each) if each.id == MASTER else each for each in snapshot.workers)
    return replace(snapshot, workers=tuple(workers))


def _with_device(own: WorkerStatus) -> WorkerStatus:
    """The master, of which the fleet knows only what it does."""
    free, total = inventory.device_memory()
    pid = os.getpid()
    rss = rss_of(pid)
    return replace(
        own,
        pid=pid,
        device=prompts.torch_device_id(),
        device_name=inventory.device_name(),
        memory=Memory(rss_bytes=rss, device_free_bytes=free, device_total_bytes=total),
    )


# The stream.


_readers: set[Call] = set()


async def _events(call: Call) -> web.StreamResponse:
    """Server-Sent Events: first the state, then all that happens, for as long as one listens."""
    if len(_readers) >= _MAX_READERS:
        raise FleetError(f"{_MAX_READERS} read the events already, which is the most: end one.")
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    response = web.StreamResponse(headers=headers)
    _readers.add(call)
    try:
        await response.prepare(call.request)
        with suppress(ConnectionResetError):  # the reader has left: that is how it ends
            await _tell(call, response)
    finally:
        _readers.discard(call)
    return response


async def _tell(call: Call, response: web.StreamResponse) -> None:
    while call.is_admitted():
        fleet = master().seen_fleet
        if fleet is None:
            await _wait_for_fleet(call, response)
        else:
            await _follow(call, response, fleet)


async def _wait_for_fleet(call: Call, response: web.StreamResponse) -> None:
    await _send_state(response, None)
    while master().seen_fleet is None and call.is_admitted():
        await response.write(b": no fleet\n\n")
        await asyncio.sleep(_LOOK_S)


async def _send_state(response: web.StreamResponse, fleet: Fleet | None) -> int:
    """The state as an event; the number of the last event that is in it."""
    state = await asyncio.to_thread(_state, fleet)
    await response.write(_event("status", state["seq"], state))
    return int(state["seq"])


async def _follow(call: Call, response: web.StreamResponse, fleet: Fleet) -> None:
    """Pass events on until another fleet takes the place of this one."""
    news, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # this ComfyUI's loop has ended, and the reader with it
            loop.call_soon_threadsafe(news.set)

    reader = fleet.ledger.subscribe(wake)
    try:
        known = await _send_state(response, fleet)
        while master().seen_fleet is fleet:
            await _wait(news)
            if not call.is_admitted():
                return
            events = [event for event in reader.take() if event.seq > known]
            await response.write(_text(events))
    finally:
        fleet.ledger.unsubscribe(reader)


async def _wait(news: asyncio.Event) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(news.wait(), _PULSE_S)
    news.clear()


def _text(events: Sequence[Happened]) -> bytes:
    return b"".join(_event(e.kind, e.seq, asdict(e)) for e in events) or b": nothing new\n\n"


def _event(kind: str, seq: int, data: dict[str, Any]) -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
