"""How long a follower may be silent, set over HTTP: few tests are about silence."""

from __future__ import annotations

from typing import Any

import server
from aiohttp import web

routes = server.PromptServer.instance.routes

#: What only a hang reaches, where users are kept waiting for seconds.
_LONG_S = 120.0


@routes.post("/test/patience")
async def patience(request: web.Request) -> web.Response:
    """``seconds`` for ``worker``, or for all where none is named: then nobody is waited for less.

    How late the others are says how busy the machine is.
    """
    from comfyfleet.fleet import gangs, loans

    asked: dict[str, Any] = await request.json()
    loans._PATIENCE_S = float(asked["seconds"])
    loans.Lending._feel = _feeling(asked["worker"])
    loans._RETURN_S = gangs._LAST_WORD_S = _LONG_S
    return web.Response()


def _feeling(worker: str) -> Any:
    from comfyfleet.fleet import loans

    original = getattr(loans.Lending._feel, "original", loans.Lending._feel)

    async def feel(lending: Any, loan: Any) -> None:
        if worker in ("", loan.worker.id):
            await original(lending, loan)

    feel.original = original  # type: ignore[attr-defined]
    return feel
