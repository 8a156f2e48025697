"""The one place through which routes of ours come into ComfyUI: each says who may ask."""

from __future__ import annotations

import logging

import server
from aiohttp import web

from comfyfleet.api import BASE, Route
from comfyfleet.comfy import prompts
from comfyfleet.config import HOSTS
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.extension.routes.answers import Answer, Call, error_answer, fields_of
from comfyfleet.fleet.gate import Caller, Gate
from comfyfleet.fleet.registry import write_master
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens

logger = logging.getLogger(__name__)

#: ComfyUI gives each route of a pack a second address below /api.
_PLACES = (f"{BASE}/", f"/api{BASE}/")
_gate: Gate | None = None
_tokens: Tokens | None = None


def install() -> None:
    """Make the tokens if this is the first start; before any route is served."""
    try:
        tokens().prepare()
        write_master(prompts.own_url(), owner_folder())
    except ComfyFleetError as error:  # ComfyUI runs all the same, and our routes say it again
        logger.error("%s", error)
    server.PromptServer.instance.app.on_response_prepare.append(_seal)


def serve(route: Route, answer: Answer) -> None:
    """Add a route: who may not ask is refused, and ``answer`` gets what was checked."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method != route.method:  # HEAD comes along with GET, also to endless streams
            raise web.HTTPMethodNotAllowed(request.method, [route.method])
        try:
            call = await _admitted(request, route)
            found = await answer(call)
        except ComfyFleetError as error:
            return error_answer(error)
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    server.PromptServer.instance.routes.route(route.method, route.address)(handle)


def tokens() -> Tokens:
    """Who holds a token of this ComfyUI's fleet."""
    global _tokens
    if _tokens is None:
        _tokens = Tokens(owner_folder() / TOKENS_FILE)
    return _tokens


def gate() -> Gate:
    """Who is let in."""
    global _gate
    if _gate is None:
        _gate = Gate(tokens(), _names())
    return _gate


def _names() -> list[str]:
    try:
        names = read_config().value(HOSTS).split(",")
    except InputError as error:  # who comes by a name of ours, or with a token, may still
        logger.error("no further host names are known: %s", error)
        return []
    return [name.strip() for name in names if name.strip()]


def caller_of(request: web.Request) -> Caller:
    """What of a request says who asks."""
    return Caller(
        scheme=request.scheme,
        address=request.remote or "",
        headers=request.headers,
        version=(request.version.major, request.version.minor),
    )


async def _admitted(request: web.Request, route: Route) -> Call:
    caller = caller_of(request)
    gate().admit(caller, route.access)

    def is_admitted() -> bool:
        try:
            gate().admit(caller, route.access)
        except ComfyFleetError:
            return False
        return True

    given = await fields_of(request, route)
    return Call(request=request, route=route, given=given, is_admitted=is_admitted)


async def _seal(request: web.Request, response: web.StreamResponse) -> None:
    """After all middlewares: no page elsewhere reads an answer of ours, and nobody keeps one."""
    if not request.path.startswith(_PLACES):
        return
    for name in [each for each in response.headers if each.startswith("Access-Control-")]:
        del response.headers[name]
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
