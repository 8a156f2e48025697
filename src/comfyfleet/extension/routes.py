"""Our routes: what the owner does with the fleet. JSON in, JSON out, all below /comfyfleet/v1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import server
from aiohttp import web

from comfyfleet.errors import InputError
from comfyfleet.extension.answers import BASE, NotFound, body_of, boolean, seconds, told
from comfyfleet.extension.master import master
from comfyfleet.extension.switch import Switch
from comfyfleet.fleet import Care
from comfyfleet.work import Policy

#: What may be done with one worker.
ACTIONS: Mapping[str, Callable[[Care, str], None]] = {
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
    routes = server.PromptServer.instance.routes
    routes.get(f"{BASE}/share")(told(_shown))
    routes.post(f"{BASE}/share")(told(_share))
    routes.post(f"{BASE}/runs/{{run}}/cancel")(told(_cancel))
    routes.post(f"{BASE}/workers/{{worker}}/{{action}}")(told(_act))


async def _share(request: web.Request) -> dict[str, Any]:
    """{"on": true or false}, and if they shall change "master_computes" and "stagger_s"."""
    body = await body_of(request)
    on, computes = boolean(body, "on"), boolean(body, "master_computes")
    stagger_s = seconds(body, "stagger_s")
    if on is None:
        raise InputError('give {"on": true} or {"on": false}.')
    await asyncio.to_thread(_switch_to, on, computes)
    if on and stagger_s is not None:
        master().running_fleet().set_policy(Policy(stagger_s=stagger_s))
    return state_of_sharing()


async def _shown(request: web.Request) -> dict[str, Any]:
    return state_of_sharing()


def state_of_sharing() -> dict[str, Any]:
    """Is the queue shared, and what should its owner know?"""
    found = _switch()
    return {"on": found.on, "master_computes": found.master_computes, "note": found.note}


async def _act(request: web.Request) -> dict[str, Any]:
    """One of ACTIONS, on one worker or on all."""
    worker_id, action = request.match_info["worker"], request.match_info["action"]
    if action not in ACTIONS:
        raise InputError(f"no action is called {action!r}; choose one of {', '.join(ACTIONS)}.")
    fleet = master().running_fleet()
    known = fleet.care.worker_ids
    if worker_id not in ("all", *known):
        raise NotFound(f"no worker is called {worker_id!r}; choose all, {', '.join(known)}.")
    wanted = known if worker_id == "all" else [worker_id]
    for name in wanted:
        ACTIONS[action](fleet.care, name)
    return {"workers": wanted, "action": action}


async def _cancel(request: web.Request) -> dict[str, Any]:
    """Stop a run, wherever its units are."""
    run_id, fleet = request.match_info["run"], master().running_fleet()
    if not fleet.has_run(run_id):
        raise NotFound(f"no run is called {run_id!r}, or it has ended: see {BASE}/status.")
    fleet.cancel(run_id, "cancelled by its owner")
    return {"run": run_id, "action": "cancel"}


def _switch_to(on: bool, master_computes: bool | None) -> None:
    if on:
        _switch().turn_on(master_computes=master_computes)
    else:
        _switch().turn_off()


def _switch() -> Switch:
    found = master().switch
    assert found is not None, "routes are installed where the queue is watched"
    return found
