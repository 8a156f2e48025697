"""Routes by which the owner does something with the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.api import BASE, routes
from comfyfleet.extension.master import master
from comfyfleet.extension.queue.switch import Switch
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call, NotFound
from comfyfleet.fleet import Care

#: How each of ``api.routes.ACTIONS`` is done.
_ACTIONS: Mapping[str, Callable[[Care, str], None]] = {
    "enable": lambda care, worker_id: care.resume(worker_id),
    "disable": lambda care, worker_id: care.pause(worker_id),
    "restart": lambda care, worker_id: care.restart(worker_id),
    "interrupt": lambda care, worker_id: care.interrupt(worker_id),
    "free": lambda care, worker_id: care.free(
        {"unload_models": True, "free_memory": True}, worker_id
    ),
}


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.SHARE, _shown)
    serve(routes.SET_SHARE, _share)
    serve(routes.CANCEL, _cancel)
    serve(routes.ACT, _act)


async def _share(call: Call) -> dict[str, Any]:
    await asyncio.to_thread(_switch_to, call["on"], call["master_computes"], call["stagger_s"])
    return state_of_sharing()


async def _shown(_call: Call) -> dict[str, Any]:
    return state_of_sharing()


def state_of_sharing() -> dict[str, Any]:
    """Is the queue shared, and what should its owner know?"""
    found = _switch()
    computes = found.on and found.master_computes
    return {"on": found.on, "master_computes": computes, "note": found.note}


async def _act(call: Call) -> dict[str, Any]:
    worker_id, action = call["worker"], call["action"]
    fleet = master().running_fleet()
    known = fleet.care.worker_ids
    if worker_id not in ("all", *known):
        raise NotFound(f"no worker is called {worker_id!r}; choose all, {', '.join(known)}.")
    wanted = known if worker_id == "all" else [worker_id]
    for name in wanted:
        _ACTIONS[action](fleet.care, name)
    return {"workers": wanted, "action": action}


async def _cancel(call: Call) -> dict[str, Any]:
    run_id, fleet = call["run"], master().running_fleet()
    if not fleet.has_run(run_id):
        raise NotFound(f"no run is called {run_id!r}, or it has ended: see {BASE}/status.")
    fleet.cancel(run_id, "cancelled by its owner")
    return {"run": run_id, "action": "cancel"}


def _switch_to(on: bool, master_computes: bool | None, stagger_s: float | None) -> None:
    if on:
        _switch().turn_on(master_computes=master_computes, stagger_s=stagger_s)
    else:
        _switch().turn_off()


def _switch() -> Switch:
    found = master().switch
    assert found is not None, "routes are installed where the queue is watched"
    return found
