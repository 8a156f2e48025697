"""Routes by which others get a token, and lose it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from comfyfleet.api import routes
from comfyfleet.errors import AccessError
from comfyfleet.extension.routes.access import caller_of, gate, serve, tokens
from comfyfleet.extension.routes.answers import Call, NotFound
from comfyfleet.fleet.pairing import VALID_S, Pairing

logger = logging.getLogger(__name__)

_pairing = Pairing()


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.NEW_CODE, _new_code)
    serve(routes.PAIR, _pair)
    serve(routes.TOKENS, _holders)
    serve(routes.REVOKE, _revoke)


async def _new_code(_call: Call) -> dict[str, Any]:
    return {"code": _pairing.new_code(), "valid_s": VALID_S}


async def _pair(call: Call) -> dict[str, Any]:
    name = call["name"]
    try:
        token = await asyncio.to_thread(_pairing.redeem, call["code"], lambda: tokens().issue(name))
    except AccessError as error:
        if error.status == 403:
            gate().failed(caller_of(call.request))
        raise
    logger.info("%s holds a token of this fleet now (from %s)", name, call.request.remote)
    return {"name": name, "token": token}


async def _holders(_call: Call) -> dict[str, Any]:
    issued = await asyncio.to_thread(tokens().issued)
    return {"tokens": [{"name": each.name, "created": each.created} for each in issued]}


async def _revoke(call: Call) -> dict[str, Any]:
    name = call["name"]
    if not await asyncio.to_thread(tokens().revoke, name):
        raise NotFound(f"nobody called {name!r} holds a token.")
    logger.info("the token of %s is revoked", name)
    return {"name": name, "revoked": True}
