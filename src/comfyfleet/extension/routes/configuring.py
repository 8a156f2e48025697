"""Routes by which the owner sees and changes fleet.yaml."""

from __future__ import annotations

import asyncio
from typing import Any

from comfyfleet import config
from comfyfleet.api import config as routes
from comfyfleet.errors import AccessError
from comfyfleet.extension.master import master
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call, NotFound

#: Whoever sets these chooses whose code runs here.
_BY_COMMAND = ("cluster", "insecure_cluster", "accept_models")


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.SHOW, _show)
    serve(routes.SET, _set)
    serve(routes.ADD_WORKER, _add_worker)
    serve(routes.REMOVE_WORKER, _remove_worker)


async def _show(_call: Call) -> dict[str, Any]:
    return await asyncio.to_thread(_shown)


async def _set(call: Call) -> dict[str, Any]:
    if call["key"] in _BY_COMMAND:
        raise AccessError(403, f"{call['key']} is set by the command alone (`comfyfleet config`).")
    file, key, value = owner_folder() / config.FILE_NAME, call["key"], call["value"]
    if value is None:
        await asyncio.to_thread(config.unset_setting, file, key)
    else:
        await asyncio.to_thread(config.set_setting, file, key, value)
    return await asyncio.to_thread(_shown)


async def _add_worker(call: Call) -> dict[str, Any]:
    entry = {"name": call["name"], "url": call["url"]}
    await asyncio.to_thread(config.add_worker, owner_folder() / config.FILE_NAME, entry)
    await asyncio.to_thread(master().look_for_workers)
    return await asyncio.to_thread(_shown)


async def _remove_worker(call: Call) -> dict[str, Any]:
    name: str = call["worker"]
    if all(each.name != name for each in (await asyncio.to_thread(read_config)).workers):
        raise NotFound(f"fleet.yaml has no worker called {name!r}.")
    file = owner_folder() / config.FILE_NAME
    await asyncio.to_thread(config.remove_worker, file, name)
    return await asyncio.to_thread(_shown)


def _shown() -> dict[str, Any]:
    return read_config().shown()
