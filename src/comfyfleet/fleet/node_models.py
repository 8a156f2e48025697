"""The models of a cluster's nodes: what a workflow lacks there, and where copies come and go.

Whoever has the cluster's token runs code on its nodes, so these accept models without a setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from comfyfleet.client.background import in_background
from comfyfleet.client.inventory import Need
from comfyfleet.client.link import patiently
from comfyfleet.client.models import Site, Whole
from comfyfleet.client.preflight import Look, in_time
from comfyfleet.fleet.fleet import Fleet
from comfyfleet.work import Prompt


class NodeStore:
    """A ``ModelStore`` on the node of a worker, which may be started again meanwhile."""

    def __init__(self, fleet: Fleet, worker: str, patience_s: float) -> None:
        self._fleet, self._worker, self._patience_s = fleet, worker, patience_s

    @property
    def name(self) -> str:
        return self._worker

    async def has_extension(self) -> bool:
        return True

    async def listed(self) -> tuple[bool, list[Mapping[str, Any]]]:
        return True, await self._ask("listed")

    async def state(self, whole: Whole) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._ask("state", whole)
        return found

    async def add(self, whole: Whole, start: int, data: bytes) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._ask("add", whole, start, data)
        return found

    async def source(self, folder: str, file: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._ask("source", folder, file)
        return found

    async def read(self, folder: str, file: str, start: int) -> bytes:
        found: bytes = await self._ask("read", folder, file, start)
        return found

    async def close(self) -> None:
        """Its worker stays."""

    async def _ask(self, method: str, *args: Any) -> Any:
        async def once() -> Any:
            return await in_background(self._fleet.ask, self._worker, "stock", method, *args)

        return await patiently(once, self._patience_s)


def node_sites(fleet: Fleet | None) -> dict[str, Site]:
    """Each living worker on a node, by its id."""
    if fleet is None:
        return {}
    return {worker: _site(fleet, worker, address) for worker, address in fleet.nodes.items()}


def _site(fleet: Fleet, worker: str, address: str) -> Site:
    return Site(name=worker, place=address, open=lambda limit: NodeStore(fleet, worker, limit))


async def look_at_nodes(fleet: Fleet | None, prompt: Prompt, sent: frozenset[str]) -> list[Look]:
    """One look for each node, by the id of its first worker; see ``preflight.look_at_all``."""
    if fleet is None:
        return []
    first = {address: worker for worker, address in reversed(fleet.nodes.items())}
    looks = (
        in_time(worker, worker, _ask(fleet, worker, prompt, sent))
        for worker in sorted(first.values())
    )
    return list(await asyncio.gather(*looks))


async def _ask(fleet: Fleet, worker: str, prompt: Prompt, sent: frozenset[str]) -> Look:
    accepts, models = await NodeStore(fleet, worker, 0.0).listed()
    _, lacking = await in_background(fleet.ask, worker, "fitted", prompt, sent)
    missing = tuple(each for each in lacking if isinstance(each, Need))
    return Look(worker=worker, accepts=accepts, missing=missing, models=tuple(models))
