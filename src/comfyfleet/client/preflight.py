"""Before a workflow runs: what of it each ComfyUI elsewhere lacks. Nothing is sent there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from comfyfleet.client.inventory import Need
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.model_link import LinkStore
from comfyfleet.client.remote import RemoteRunner
from comfyfleet.errors import ComfyFleetError
from comfyfleet.work import Prompt

_PATIENCE_S = 20.0
#: Who checks a workflow waits so long for all of one worker's answers.
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one worker has of a workflow."""

    worker: str
    #: Why nothing is known of it; empty if all is.
    error: str = ""
    #: Can models be copied to it?
    accepts: bool = False
    missing: tuple[Need, ...] = ()
    #: Its models, where it has the extension: folder, file, size, sha256.
    models: tuple[Mapping[str, Any], ...] = ()


async def look_at_all(
    endpoints: Mapping[str, Endpoint], prompt: Prompt, sent: frozenset[str]
) -> list[Look]:
    """One look for each, by name; ``sent`` are files that will be sent with the workflow."""
    looks = (
        in_time(name, each.url, _ask(name, each, prompt, sent)) for name, each in endpoints.items()
    )
    return list(await asyncio.gather(*looks))


async def in_time(worker: str, at: str, look: Awaitable[Look]) -> Look:
    """A look, or one that says why nothing is known of the worker, which is ``at`` this place."""
    try:
        return await asyncio.wait_for(look, _LIMIT_S)
    except ComfyFleetError as error:
        return Look(worker=worker, error=str(error))
    except asyncio.TimeoutError:
        return Look(worker=worker, error=f"{at} did not answer within {_LIMIT_S:.0f} s.")


async def _ask(name: str, endpoint: Endpoint, prompt: Prompt, sent: frozenset[str]) -> Look:
    link = Link(endpoint, patience_s=_PATIENCE_S)
    try:
        runner = RemoteRunner(link, {})
        greeting = await runner.greet()
        accepts, models = await LinkStore(link).listed() if greeting.has_extension else (False, [])
        missing = tuple(runner.missing(prompt, sent))
        return Look(worker=name, accepts=accepts, missing=missing, models=tuple(models))
    finally:
        await link.close()
